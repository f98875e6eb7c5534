//! `nestling wait`, and what other verbs wait for.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;
use futures::{Stream, StreamExt, future};
use kube::core::Status;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, ResourceExt};
use nestling_core::api::KindCluster;
use tokio::time::{Instant, interval, timeout_at};

use super::exit::{FAILED, GONE, STALLED, TIMED_OUT};
use super::failure::{Failure, command};
use super::host::{Host, connect, no_such, refused};
use super::progress::{self, Verdict, verdict};
use super::select::{answer, api, select};
use super::{Goal, HostArgs, WaitArgs};

/// How often the live view moves.
const TICK: Duration = Duration::from_millis(500);

/// Waits for clusters.
pub async fn run(host: HostArgs, args: WaitArgs) -> Result<()> {
    let started = Instant::now();
    let host = connect(host).await?;
    let deadline = started + args.timeout;
    let names = if args.selection.names.is_empty() {
        let selected = timeout_at(deadline, select(&host, &args.selection)).await;
        let selected = selected.map_err(|_| timed_out(progress::timed_out(None, args.goal, args.timeout), ""))??;
        selected.iter().map(ResourceExt::name_any).collect()
    } else {
        args.selection.names.clone()
    };
    until(&host, &names, args.goal, args.timeout, started).await.map(drop)
}

/// Waits until all of these clusters have come to the goal, and shows how. The time counts from `started`.
///
/// # Errors
/// When all have come to an end, the failures of those that do not get there; the highest of their exit codes.
pub async fn until(host: &Host, names: &[String], goal: Goal, limit: Duration, started: Instant) -> Result<Vec<KindCluster>> {
    let view = RefCell::new(View::new(goal, started, names));
    let waits = join_all(names.iter().enumerate().map(|(index, name)| until_one(host, name, &view, index, limit)));
    let ends = tokio::select! {
        ends = waits => ends,
        error = tick(&view) => return Err(error),
    };
    all(names, ends)
}

/// Moves the live view; returns only if it cannot be drawn.
async fn tick(view: &RefCell<View>) -> anyhow::Error {
    let mut ticks = interval(TICK);
    loop {
        ticks.tick().await;
        if let Err(error) = view.borrow_mut().draw() {
            return error;
        }
    }
}

/// What several waits come to.
fn all(names: &[String], ends: Vec<Result<KindCluster>>) -> Result<Vec<KindCluster>> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for end in ends {
        match end {
            Ok(cluster) => good.push(cluster),
            Err(error) => bad.push(error),
        }
    }
    if bad.len() > 1 {
        let code = bad.iter().map(|error| error.downcast_ref::<Failure>().map_or(FAILED, Failure::code)).max().unwrap_or(FAILED);
        let what: Vec<String> = bad.iter().map(|error| format!("  {}", error.to_string().trim_end().replace('\n', "\n  "))).collect();
        let what = format!("{} of {} clusters did not get there:\n{}", bad.len(), names.len(), what.join("\n"));
        return Err(Failure::new(what, "Follow each arrow above; the others are there.").with_code(code).into());
    }
    bad.pop().map_or(Ok(good), Err)
}

async fn until_one(host: &Host, name: &str, view: &RefCell<View>, index: usize, limit: Duration) -> Result<KindCluster> {
    let (goal, started) = (view.borrow().goal, view.borrow().started);
    let object = format!("{}/{name}", host.namespace);
    let deadline = started + limit;
    let api: Api<KindCluster> = api(host);
    // The watch itself never gives up, so what it would try for ever is asked once.
    match timeout_at(deadline, api.get_opt(name)).await {
        Err(_) => return Err(timed_out(progress::timed_out(None, goal, limit), &object)),
        Ok(Err(error)) => return Err(answer(error, &format!("read KindCluster {object}"))),
        Ok(Ok(None)) => return Err(no_such(&host.namespace, name).into()),
        Ok(Ok(Some(_))) => {}
    }
    let sights = watch_object(api, name).default_backoff();
    match timeout_at(deadline, Box::pin(follow(sights, view, index, &object))).await {
        Ok(result) => result,
        Err(_) => Err(timed_out(progress::timed_out(view.borrow().entries[index].newest.as_ref(), goal, limit), &object)),
    }
}

/// Follows the object to one of its ends.
async fn follow(sights: impl Stream<Item = watcher::Result<Option<KindCluster>>>, view: &RefCell<View>, index: usize, object: &str) -> Result<KindCluster> {
    let mut sights = pin!(sights);
    let goal = view.borrow().goal;
    loop {
        match sights.next().await {
            Some(Ok(Some(cluster))) => match verdict(&cluster, goal) {
                Verdict::Underway => view.borrow_mut().show(index, cluster)?,
                Verdict::Reached => {
                    view.borrow_mut().finish(index, cluster.clone())?;
                    return Ok(cluster);
                }
                Verdict::Stalled => return Err(stalled(&cluster, goal)),
                Verdict::Deleting => return Err(gone(object, "is being deleted")),
            },
            Some(Ok(None)) => return Err(gone(object, "is gone")),
            Some(Err(error)) => match refusal(&error) {
                Some(status) => return Err(refused(status.code, &status.message, "watch KindClusters").into()),
                None => view.borrow_mut().note(index, &format!("the host cluster does not answer, trying again: {error}"))?,
            },
            // It has no end; should it have one, the time-out speaks.
            None => future::pending().await,
        }
    }
}

/// The answer of an API server that will not change by asking again.
fn refusal(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            if matches!(status.code, 401 | 403) =>
        {
            Some(status)
        }
        _ => None,
    }
}

fn timed_out(what: String, object: &str) -> anyhow::Error {
    let next = match object.split_once('/') {
        Some((namespace, name)) => {
            format!("It goes on without you. Wait longer with a higher time-out, or see `{}`.", command(&format!("describe -n {namespace} {name}")))
        }
        None => "Check that the host cluster answers: `kubectl version`.".to_owned(),
    };
    Failure::new(what, next).with_code(TIMED_OUT).into()
}

fn stalled(cluster: &KindCluster, goal: Goal) -> anyhow::Error {
    let (what, next) = progress::stalled(cluster, goal);
    Failure::new(what, next).with_code(STALLED).into()
}

fn gone(object: &str, how: &str) -> anyhow::Error {
    let name = object.split_once('/').map_or(object, |(_, name)| name);
    Failure::new(format!("KindCluster {object} {how}"), format!("If you need it, make it anew: `{}`.", command(&format!("create {name}"))))
        .with_code(GONE)
        .into()
}

/// What is on the terminal, or was last said into the pipe.
struct View {
    goal: Goal,
    started: Instant,
    live: bool,
    entries: Vec<Entry>,
    drawn_lines: usize,
}

/// One of the clusters that are waited for.
struct Entry {
    name: String,
    newest: Option<KindCluster>,
    seen_at: Instant,
    said: String,
}

impl View {
    fn new(goal: Goal, started: Instant, names: &[String]) -> Self {
        let live = std::io::stdout().is_terminal();
        let entries = names.iter().map(|name| Entry { name: name.clone(), newest: None, seen_at: started, said: String::new() }).collect();
        Self { goal, started, live, entries, drawn_lines: 0 }
    }

    /// Shows a new sight of an object.
    fn show(&mut self, index: usize, cluster: KindCluster) -> Result<()> {
        let news = progress::news(&cluster, self.goal);
        let entry = &mut self.entries[index];
        // The time of an unchanged stage runs on; only a changed object carries newer ones.
        entry.seen_at = Instant::now();
        entry.newest = Some(cluster);
        if self.live { self.draw() } else { self.note(index, &news) }
    }

    /// One line, unless it was the last one already.
    fn note(&mut self, index: usize, news: &str) -> Result<()> {
        let many = self.entries.len() > 1;
        let entry = &mut self.entries[index];
        if entry.said == news {
            return Ok(());
        }
        news.clone_into(&mut entry.said);
        let news = if many { format!("{}: {news}", entry.name) } else { news.to_owned() };
        self.say(&progress::line(self.started.elapsed(), &news))
    }

    /// The last line on a cluster that came to the goal.
    fn finish(&mut self, index: usize, cluster: KindCluster) -> Result<()> {
        let success = progress::success(&cluster, self.goal, self.started.elapsed());
        self.entries[index].newest = Some(cluster);
        if self.entries.len() > 1 {
            return self.say(&success);
        }
        self.draw()?;
        self.drawn_lines = 0;
        Ok(writeln!(std::io::stdout(), "{success}")?)
    }

    /// A line that stays, above the live view.
    fn say(&mut self, line: &str) -> Result<()> {
        self.erase()?;
        writeln!(std::io::stdout(), "{line}")?;
        self.draw()
    }

    /// Draws the live view over the former one.
    fn draw(&mut self) -> Result<()> {
        if !self.live {
            return Ok(());
        }
        let elapsed = self.started.elapsed();
        let lines = match self.entries.as_slice() {
            [Entry { newest: Some(cluster), seen_at, .. }] => progress::screen(cluster, self.goal, elapsed, seen_at.elapsed()),
            [_] => return Ok(()),
            many => {
                let under = many.iter().filter_map(|entry| entry.newest.as_ref()).filter(|cluster| verdict(cluster, self.goal) == Verdict::Underway);
                progress::board(under, self.goal, elapsed)
            }
        };
        let mut text = over(self.drawn_lines);
        // Without wrapping a line is a row, whatever the width of the terminal.
        text += "\x1b[?7l";
        for line in &lines {
            text += line;
            text += "\n";
        }
        text += "\x1b[?7h";
        self.drawn_lines = lines.len();
        put(&text)
    }

    /// Takes the live view away, so that something else can be said.
    fn erase(&mut self) -> Result<()> {
        let text = over(self.drawn_lines);
        self.drawn_lines = 0;
        put(&text)
    }
}

fn put(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// To the first of so many lines above, and everything below it erased.
fn over(lines: usize) -> String {
    if lines == 0 { String::new() } else { format!("\x1b[{lines}A\x1b[J") }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "the tables below read better")]
    fn sight(deleted: bool, conditions: &[(&str, &str)]) -> watcher::Result<Option<KindCluster>> {
        let conditions: Value = conditions
            .iter()
            .map(|(type_, status)| {
                json!({"type": type_, "status": status, "reason": "Settled", "message": "", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        let metadata = json!({"name": "crane", "generation": 1, "deletionTimestamp": deleted.then_some("2026-01-01T00:00:00Z")});
        let object =
            json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": metadata, "spec": {}, "status": {"conditions": conditions}});
        Ok(Some(serde_json::from_value(object).unwrap()))
    }

    fn refused(code: u16) -> watcher::Error {
        watcher::Error::WatchStartFailed(kube::Error::Api(Box::new(Status { code, message: "no".to_owned(), ..Status::default() })))
    }

    /// How a wait ends after these sights; `None` if it goes on.
    async fn end(sights: Vec<watcher::Result<Option<KindCluster>>>) -> Option<Result<()>> {
        let view = RefCell::new(View { live: false, ..View::new(Goal::Ready, Instant::now(), &["crane".to_owned()]) });
        tokio::select! {
            biased;
            result = follow(stream::iter(sights), &view, 0, "marsh/crane") => Some(result.map(drop)),
            () = tokio::task::yield_now() => None,
        }
    }

    #[rstest]
    #[case::reached(vec![sight(false, &[]), sight(false, &[("Ready", "True")])], Some(0))]
    #[case::stalled(vec![sight(false, &[("Ready", "False"), ("Stalled", "True")])], Some(STALLED))]
    #[case::gone(vec![sight(false, &[]), Ok(None)], Some(GONE))]
    #[case::being_deleted(vec![sight(true, &[("Ready", "True")])], Some(GONE))]
    #[case::forbidden(vec![Err(refused(403))], Some(1))]
    #[case::a_host_that_comes_back(vec![Err(refused(503)), sight(false, &[("Ready", "True")])], Some(0))]
    #[case::underway(vec![sight(false, &[("Ready", "False")])], None)]
    #[tokio::test]
    async fn ends(#[case] sights: Vec<watcher::Result<Option<KindCluster>>>, #[case] expected: Option<u8>) {
        let code = end(sights).await.map(|result| match result {
            Ok(()) => 0,
            Err(error) => error.downcast_ref::<Failure>().map_or(1, Failure::code),
        });
        assert_eq!(code, expected);
    }

    #[test]
    fn several_ends_are_told_together() {
        let names = ["crane", "owl", "heron"].map(str::to_owned);
        let good = || Ok(KindCluster::new("crane", nestling_core::api::KindClusterSpec::default()));
        assert_eq!(all(&names[..1], vec![good()]).unwrap().len(), 1);
        let one = all(&names, vec![good(), Err(gone("marsh/owl", "is gone")), good()]).unwrap_err();
        insta::assert_snapshot!(one.to_string());
        let ends = vec![good(), Err(gone("marsh/owl", "is gone")), Err(timed_out("Ready did not come true in 1m".to_owned(), "marsh/heron"))];
        let several = all(&names, ends).unwrap_err();
        insta::assert_snapshot!(several.to_string());
        assert_eq!(several.downcast_ref::<Failure>().unwrap().code(), GONE);
    }
}
