//! `nestling extend`.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use nestling_core::api::KindCluster;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::args::duration;
use super::failure::{Failure, command};
use super::host::{Host, connect};
use super::select::{answer, api, get, select};
use super::{ExtendArgs, HostArgs, Selection};

/// How often a write is tried anew when the object has changed meanwhile.
const TRIES: usize = 5;

/// How long the operator may take to say which end it goes by.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum More {
    /// So much longer than now.
    By(Duration),
    /// Until then.
    Until(Timestamp),
}

/// Gives clusters more time.
pub async fn run(host: HostArgs, args: ExtendArgs) -> Result<()> {
    let (selection, more) = understand(args)?;
    let host = connect(host).await?;
    let mut failure = None;
    for cluster in select(&host, &selection).await? {
        // The others are extended all the same.
        if let Err(error) = extend(&host, &cluster.name_any(), more).await {
            failure = failure.or(Some(error));
        }
    }
    failure.map_or(Ok(()), Err)
}

/// What is selected, and what is asked for.
fn understand(args: ExtendArgs) -> Result<(Selection, More), Failure> {
    let ExtendArgs { words: mut names, selector, all, until } = args;
    let example = || format!("Such as `{}` or `{}`.", command("extend demo 2h"), command("extend -l class=monday 2h"));
    let more = match until {
        Some(until) => More::Until(until),
        None => match names.pop().as_deref().map(duration) {
            Some(Ok(by)) => More::By(by),
            Some(Err(wrong)) => return Err(Failure::new(wrong, example())),
            None => return Err(Failure::new("how much longer is not said", example())),
        },
    };
    if [!names.is_empty(), selector.is_some(), all].into_iter().filter(|said| *said).count() == 1 {
        Ok((Selection { names, selector, all }, more))
    } else {
        Err(Failure::new("it takes either names, or -l, or --all", example()))
    }
}

async fn extend(host: &Host, name: &str, more: More) -> Result<()> {
    let what = format!("change KindCluster {}/{name}", host.namespace);
    let mut tries = 0;
    loop {
        tries += 1;
        let cluster = get(host, name).await?;
        let (end, lifecycle) = decide(Timestamp::now(), &cluster, more)?;
        // Somebody else may extend it as well: nobody's end is brought nearer.
        let patch = json!({"metadata": {"resourceVersion": cluster.resource_version()}, "spec": {"lifecycle": lifecycle}});
        match api(host).patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(changed) => {
                let at = settled(&api(host), &changed).await.filter(|at| *at < end);
                let said = told(name, at.unwrap_or(end), at.is_some());
                return Ok(writeln!(std::io::stdout(), "{said}")?);
            }
            Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422) && status.message.contains("lifetimes of at most") => {
                let next = "Ask for less, or ask the operator's owner: it is policy.maxLifetime in the chart's values.";
                return Err(Failure::new(format!("cannot {what}: {}", status.message), next).into());
            }
            Err(error) => return Err(answer(error, &what)),
        }
    }
}

fn told(name: &str, end: Timestamp, is_cut: bool) -> String {
    let cut = if is_cut { "; the operator's owner allows no more" } else { "" };
    format!("{name} ends at {end}{cut}")
}

/// The end that the operator goes by once it has looked at the change; `None` if it takes too long to.
async fn settled(api: &kube::Api<KindCluster>, changed: &KindCluster) -> Option<Timestamp> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let status = api.get(&changed.name_any()).await.ok()?.status?;
        if status.observed_generation >= changed.metadata.generation {
            return Some(status.expiration_time?.0);
        }
        sleep(Duration::from_millis(200)).await;
    }
    None
}

/// The new end, and what becomes of `spec.lifecycle` (a merge patch). Every bound that would end it earlier is raised.
fn decide(now: Timestamp, cluster: &KindCluster, more: More) -> Result<(Timestamp, Value), Failure> {
    let name = cluster.name_any();
    let lifecycle = cluster.spec.lifecycle.clone().unwrap_or_default();
    let recorded = cluster.status.as_ref().and_then(|status| status.expiration_time.as_ref()).map(|time| time.0);
    let created = cluster.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let ttl = lifecycle.ttl.map(|ttl| add(created, ttl.into()));
    let time = lifecycle.expiration_time.as_ref().map(|time| time.0);
    let Some(end) = ttl.into_iter().chain(time).min() else {
        return Err(match recorded {
            Some(at) => Failure::new(
                format!("{name} ends at {at}, which its spec does not say: it is the longest that the operator's owner allows"),
                "Ask the operator's owner: it is policy.maxLifetime in the chart's values.",
            ),
            None => Failure::new(format!("{name} has no end"), "There is nothing to extend: it lives until it is deleted."),
        });
    };
    let wanted = match more {
        More::By(by) => add(end.max(now), by),
        More::Until(until) => until,
    };
    if wanted <= end || wanted <= now {
        let than = end.max(now);
        let shorten = format!("kubectl patch kindcluster {name} --type merge --patch '{{\"spec\":{{\"lifecycle\":{{\"expirationTime\":\"{wanted}\"}}}}}}'");
        return Err(match more {
            More::By(_) => Failure::new("that is no time", format!("Give how much longer, such as `{}`.", command(&format!("extend {name} 2h")))),
            More::Until(_) => Failure::new(format!("{wanted} is no extension: {name} would live until {than}"), format!("To end it earlier: `{shorten}`")),
        });
    }
    let mut patch = json!({});
    if ttl.is_some_and(|at| at < wanted) {
        // Rounded up: nothing ends early.
        let seconds = wanted.duration_since(created).as_secs_f64().ceil();
        patch["ttl"] = go_duration(Duration::try_from_secs_f64(seconds).unwrap_or_default()).into();
    }
    if time.is_some_and(|at| at < wanted) {
        patch["expirationTime"] = json!(wanted);
    }
    Ok((wanted, patch))
}

fn add(time: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// As Go writes a duration, in whole hours, minutes and seconds.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let text = parts.iter().filter(|(number, _)| *number > 0).fold(String::new(), |text, (number, unit)| text + &number.to_string() + unit);
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Created at 08:00.
    fn cluster(lifecycle: &Value, status: &Value) -> KindCluster {
        let metadata = json!({"name": "crane", "creationTimestamp": "2027-01-15T08:00:00Z"});
        let spec = json!({"lifecycle": lifecycle});
        serde_json::from_value(json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": metadata, "spec": spec, "status": status}))
            .unwrap()
    }

    fn at(text: &str) -> Timestamp {
        format!("2027-01-15T{text}:00Z").parse().unwrap()
    }

    const HOUR: More = More::By(Duration::from_hours(1));

    #[rstest]
    #[case::ttl(json!({"ttl": "2h"}), HOUR, "11:00", json!({"ttl": "3h"}))]
    #[case::time(json!({"expirationTime": "2027-01-15T10:00:00Z"}), HOUR, "11:00", json!({"expirationTime": "2027-01-15T11:00:00Z"}))]
    #[case::only_what_ends_earlier(json!({"ttl": "2h", "expirationTime": "2027-01-15T18:00:00Z"}), HOUR, "11:00", json!({"ttl": "3h"}))]
    #[case::both(json!({"ttl": "2h", "expirationTime": "2027-01-15T10:30:00Z"}), HOUR, "11:00", json!({"ttl": "3h", "expirationTime": "2027-01-15T11:00:00Z"}))]
    #[case::over_already(json!({"ttl": "30m"}), HOUR, "10:00", json!({"ttl": "2h"}))]
    #[case::until(json!({"ttl": "2h"}), More::Until(at("12:30")), "12:30", json!({"ttl": "4h30m"}))]
    #[case::parts_of_a_second(json!({"ttl": "7200500ms"}), More::Until(at("12:30")), "12:30", json!({"ttl": "4h30m"}))]
    fn more_time(#[case] lifecycle: Value, #[case] more: More, #[case] end: &str, #[case] patch: Value) {
        assert_eq!(decide(at("09:00"), &cluster(&lifecycle, &json!({})), more).unwrap(), (at(end), patch));
    }

    #[test]
    fn what_is_no_extension_says_what_to_do() {
        let told = [
            (json!({}), json!({}), HOUR),
            (json!({"deletionProtection": true}), json!({}), HOUR),
            (json!({}), json!({"expirationTime": "2027-01-15T16:00:00Z"}), HOUR),
            (json!({"ttl": "2h"}), json!({}), More::By(Duration::ZERO)),
            (json!({"ttl": "2h"}), json!({}), More::Until(at("09:30"))),
            (json!({"ttl": "30m"}), json!({}), More::Until(at("08:45"))),
        ]
        .map(|(lifecycle, status, more)| decide(at("09:00"), &cluster(&lifecycle, &status), more).unwrap_err().to_string());
        insta::assert_snapshot!(told.join("\n"));
        insta::assert_snapshot!([told_end(false), told_end(true)].join("\n"));
    }

    #[rstest]
    #[case::one(&["crane", "2h"], None, false, Ok((&["crane"][..], true)))]
    #[case::several(&["crane", "owl", "2h"], None, false, Ok((&["crane", "owl"][..], true)))]
    #[case::by_label(&["2h"], Some("a=b"), false, Ok((&[][..], true)))]
    #[case::all(&["2h"], None, true, Ok((&[][..], true)))]
    #[case::no_time(&["crane"], None, false, Err("\"crane\" is not a duration"))]
    #[case::nobody(&["2h"], None, false, Err("either names, or -l, or --all"))]
    #[case::both(&["crane", "2h"], Some("a=b"), false, Err("either names, or -l, or --all"))]
    fn who_and_how_much(#[case] words: &[&str], #[case] selector: Option<&str>, #[case] all: bool, #[case] meant: Result<(&[&str], bool), &str>) {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let understood = understand(ExtendArgs { words, selector: selector.map(str::to_owned), all, until: None });
        match (understood, meant) {
            (Ok((selection, more)), Ok((names, by))) => {
                assert_eq!((selection.names, matches!(more, More::By(_))), (names.iter().map(|&name| name.to_owned()).collect(), by));
            }
            (Err(failure), Err(text)) => assert!(failure.to_string().contains(text), "{failure}"),
            (understood, meant) => panic!("{understood:?} and not {meant:?}"),
        }
    }

    fn told_end(is_cut: bool) -> String {
        super::told("crane", at("11:00"), is_cut)
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (seconds, text) in [(0, "0s"), (61, "1m1s"), (3600, "1h"), (90_000, "25h")] {
            assert_eq!(go_duration(Duration::from_secs(seconds)), text);
        }
    }
}
