//! When a cluster's time is over, and what is said before. Each pass asks the clock anew and remembers no answer, so that a clock that was set right
//! again, or an expiry that was moved, needs no undoing.

use std::time::Duration;

use jiff::Timestamp;

use super::observed::Observed;
use super::situation::later;
use crate::api::conditions::{self, Claim};
use crate::api::reasons::Reason;

/// It is warned of the end when a tenth of the lifetime is left, within these bounds.
const NOTICE: (Duration, Duration) = (Duration::from_mins(1), Duration::from_mins(10));

/// The end of a cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Expiry {
    /// When, in whole seconds.
    pub at: Timestamp,
    /// From when on it is warned of.
    pub warned_at: Timestamp,
    /// What says so, for people.
    pub set_by: &'static str,
}

impl Expiry {
    /// Whether the cluster's time is over.
    pub fn is_over(&self, now: Timestamp) -> bool {
        now >= self.at
    }

    /// When there is something else to say or to do.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        [self.warned_at, self.at].into_iter().find(|change| *change > now)
    }
}

/// The end of a cluster: the earlier of `lifecycle.ttl` and `lifecycle.expirationTime`, and in any case what the policy allows. A cluster that is
/// protected from deletion has none.
pub fn expiry(now: Timestamp, seen: &Observed) -> Option<Expiry> {
    let created = seen.cluster.metadata.creation_timestamp.as_ref()?.0;
    let lifecycle = seen.cluster.spec.lifecycle.clone().unwrap_or_default();
    if lifecycle.deletion_protection {
        return None;
    }
    let ttl = lifecycle.ttl.map(|ttl| (later(created, ttl.into()), "spec.lifecycle.ttl"));
    let time = lifecycle.expiration_time.map(|time| (time.0, "spec.lifecycle.expirationTime"));
    let asked = ttl.into_iter().chain(time).min();
    let most = seen.settings.policy.max_lifetime.map(|max| later(created, max.into()));
    let (at, notice, set_by) = match (asked, most) {
        (Some((at, set_by)), most) if most.is_none_or(|most| at <= most) => (at, notice(created, at), set_by),
        (_, Some(most)) => {
            let notice = notice(created, most);
            let recorded = seen.status().expiration_time.map(|time| time.0);
            (with_notice(most, recorded, later(now, notice)), notice, "the longest that the operator's owner allows")
        }
        (_, None) => return None,
    };
    let at = whole_second(at);
    Some(Expiry { at, warned_at: at.checked_sub(notice).unwrap_or(Timestamp::MIN), set_by })
}

/// A policy that came later than the cluster ends it as well, but never without notice: unless the end is on record already, it is `soonest`.
fn with_notice(most: Timestamp, recorded: Option<Timestamp>, soonest: Timestamp) -> Timestamp {
    if most >= soonest { most } else { recorded.unwrap_or(soonest).clamp(most, soonest) }
}

fn notice(created: Timestamp, at: Timestamp) -> Duration {
    let lifetime = Duration::try_from(at.duration_since(created)).unwrap_or_default();
    (lifetime / 10).clamp(NOTICE.0, NOTICE.1)
}

/// Rounded up: nothing ends early.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second() + i64::from(time.subsec_nanosecond() > 0)).unwrap_or(Timestamp::MAX)
}

/// Whether it is on record that the cluster's time is over.
pub fn is_recorded(seen: &Observed) -> bool {
    conditions::has_reason(&seen.status().conditions, conditions::EXPIRING, Reason::Expired)
}

/// What the condition `Expiring` says.
pub fn claim(now: Timestamp, seen: &Observed) -> Claim {
    let Some(expiry) = expiry(now, seen) else { return Claim::no(Reason::NoExpiry, "") };
    let paused = if seen.cluster.spec.paused { "; it is not deleted before spec.paused is false" } else { "" };
    let message = |verb: &str| format!("the cluster {verb} at {} ({}){paused}", expiry.at, expiry.set_by);
    if expiry.is_over(now) {
        Claim::yes(Reason::Expired, message("expired"))
    } else if now >= expiry.warned_at {
        Claim::yes(Reason::ExpiresSoon, Reason::ExpiresSoon.explain(&message("expires")))
    } else {
        Claim::no(Reason::NotExpiring, message("expires"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::plan::decide::{Step, decide};
    use crate::plan::notes::notes;
    use crate::plan::policy::Policy;
    use crate::plan::settings::Settings;
    use crate::plan::settle::{Outcome, settle};
    use crate::plan::testing::{self, NOW};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use rstest::rstest;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A cluster that was created at [`NOW`], with a policy's `maxLifetime` (none if empty).
    fn seen(lifecycle: &str, most: &str) -> Observed {
        let mut cluster = testing::cluster(&format!("lifecycle: {lifecycle}"));
        cluster.metadata.creation_timestamp = Some(Time(at(NOW)));
        let policy = if most.is_empty() { Policy::default() } else { Policy::parse(&format!(r#"{{"maxLifetime": "{most}"}}"#)).unwrap() };
        Observed { settings: Arc::new(Settings { policy, ..testing::settings() }), ..testing::observed(cluster) }
    }

    // NOW is 2027-01-15T08:00:00Z.
    #[rstest]
    #[case::never("{}", "", None)]
    #[case::ttl("{ttl: 2h}", "", Some((7200, 6600)))]
    #[case::a_short_ttl("{ttl: 2m}", "", Some((120, 60)))]
    #[case::a_tenth("{ttl: 50m}", "", Some((3000, 2700)))]
    #[case::a_ttl_shorter_than_the_notice("{ttl: 5s}", "", Some((5, -55)))]
    #[case::parts_of_a_second("{ttl: 1500ms}", "", Some((2, -58)))]
    #[case::the_earlier_one("{ttl: 2h, expirationTime: '2027-01-15T09:00:00Z'}", "", Some((3600, 3240)))]
    #[case::the_earlier_one("{ttl: 1h, expirationTime: '2027-01-15T10:00:00Z'}", "", Some((3600, 3240)))]
    #[case::another_zone("{expirationTime: '2027-01-15T10:00:00+01:00'}", "", Some((3600, 3240)))]
    #[case::past("{expirationTime: '2020-01-01T00:00:00Z'}", "", Some((1_577_836_800 - NOW, 1_577_836_740 - NOW)))]
    #[case::the_most("{}", "8h", Some((28_800, 28_200)))]
    #[case::less_than_the_most("{ttl: 2h}", "8h", Some((7200, 6600)))]
    #[case::more_than_the_most("{ttl: 9h}", "8h", Some((28_800, 28_200)))]
    #[case::protected("{deletionProtection: true}", "8h", None)]
    #[case::the_end_of_time("{ttl: 2562047h}", "", Some((2_562_047 * 3600, 2_562_047 * 3600 - 600)))]
    fn the_earliest_end_counts(#[case] lifecycle: &str, #[case] most: &str, #[case] expected: Option<(i64, i64)>) {
        let found = expiry(at(NOW), &seen(lifecycle, most)).map(|expiry| (expiry.at.as_second() - NOW, expiry.warned_at.as_second() - NOW));
        assert_eq!(found, expected);
    }

    #[test]
    fn an_object_without_a_creation_time_does_not_end() {
        let mut seen = seen("{ttl: 2h}", "8h");
        seen.cluster.metadata.creation_timestamp = None;
        assert_eq!(expiry(at(NOW), &seen), None);
    }

    /// One pass at this second after the creation: steps, `Expiring`, events, seconds until the next pass.
    fn pass(seen: &mut Observed, second: i64) -> (Vec<&'static str>, String, Vec<&'static str>, i64) {
        let now = at(NOW + second);
        let plan = decide(now, seen);
        let before = seen.status();
        let after = settle(now, seen, &Outcome { done: plan.steps.clone(), ..Outcome::default() });
        let told = notes(&before, &after).iter().map(|note| note.reason).filter(|reason| reason.starts_with("Expire")).collect();
        let condition = conditions::get(&after.conditions, conditions::EXPIRING).unwrap();
        let said = format!("{} {}", condition.status, condition.reason);
        seen.cluster.status = Some(after);
        (plan.steps.iter().map(Step::name).collect(), said, told, plan.wake_at.unwrap().as_second() - now.as_second())
    }

    #[test]
    fn a_cluster_is_warned_recorded_and_deleted_in_time() {
        let mut seen = testing::with_pod(seen("{ttl: 50m}", ""), 0);
        // Its creation has the earlier deadline.
        let (_, said, told, wake) = pass(&mut seen, 0);
        assert_eq!((said.as_str(), told.len(), wake), ("False NotExpiring", 0, 900));
        seen.cluster.status.as_mut().unwrap().cluster_attempt = Some(1);
        assert_eq!(pass(&mut seen, 1000).3, 1700);
        let (_, said, told, wake) = pass(&mut seen, 2700);
        assert_eq!((said.as_str(), told, wake), ("True ExpiresSoon", vec!["ExpiresSoon"], 300));
        assert_eq!(pass(&mut seen, 2999), (vec![], "True ExpiresSoon".into(), vec![], 1));
        assert_eq!(pass(&mut seen, 3000), (vec![], "True Expired".into(), vec!["Expired"], 0));
        let (steps, said, told, _) = pass(&mut seen, 3000);
        assert_eq!((steps, said.as_str(), told.len()), (vec!["Expire"], "True Expired", 0));
        assert_eq!(seen.status().expiration_time, Some(Time(at(NOW + 3000))));
        // Why stays on record.
        seen.cluster.metadata.deletion_timestamp = Some(Time(at(NOW + 3000)));
        assert_eq!(pass(&mut seen, 3001).1, "True Expired");
    }

    #[test]
    fn more_time_clears_the_warning_also_in_the_last_moment() {
        let mut seen = testing::with_pod(seen("{ttl: 50m}", ""), 0);
        seen.cluster.status.get_or_insert_default().cluster_attempt = Some(1);
        assert_eq!(pass(&mut seen, 3000).1, "True Expired");
        seen.cluster.spec.lifecycle.as_mut().unwrap().ttl = Some(Duration::from_hours(2).into());
        let (steps, said, _, wake) = pass(&mut seen, 3001);
        assert_eq!((steps, said.as_str(), wake), (vec![], "False NotExpiring", 3599));
        // A clock that was ahead for a moment is the same.
        assert_eq!(pass(&mut seen, 7000).1, "True ExpiresSoon");
        assert_eq!(pass(&mut seen, 3002).1, "False NotExpiring");
    }

    #[test]
    fn what_is_over_when_it_is_seen_first_gets_no_pod() {
        let mut seen = seen("{ttl: 1m}", "");
        assert_eq!(pass(&mut seen, 60).0, Vec::<&str>::new());
        assert_eq!(pass(&mut seen, 60).0, ["Expire"]);
    }

    #[test]
    fn paused_ends_nothing_and_says_so() {
        let mut seen = testing::with_pod(seen("{ttl: 50m}", ""), 0);
        seen.cluster.spec.paused = true;
        assert_eq!(pass(&mut seen, 0).3, 2700);
        for _ in 0..2 {
            let (steps, said, _, wake) = pass(&mut seen, 3000);
            assert_eq!((steps, said.as_str()), (vec![], "True Expired"));
            assert!(wake >= 3600, "{wake}");
        }
        let message = conditions::get(&seen.status().conditions, conditions::EXPIRING).unwrap().message.clone();
        assert_eq!(message, "the cluster expired at 2027-01-15T08:50:00Z (spec.lifecycle.ttl); it is not deleted before spec.paused is false");
        seen.cluster.spec.paused = false;
        assert_eq!(pass(&mut seen, 3001).0, ["Expire"]);
    }

    #[test]
    fn a_policy_that_comes_late_gives_notice() {
        let mut seen = testing::with_pod(seen("{}", ""), 0);
        seen.cluster.status.get_or_insert_default().cluster_attempt = Some(1);
        assert_eq!(pass(&mut seen, 90_000).1, "False NoExpiry");
        seen.settings = Arc::new(Settings { policy: Policy::parse(r#"{"maxLifetime": "8h"}"#).unwrap(), ..testing::settings() });
        let (steps, said, told, wake) = pass(&mut seen, 90_000);
        assert_eq!((steps, said.as_str(), told, wake), (vec![], "True ExpiresSoon", vec!["ExpiresSoon"], 600));
        assert_eq!(pass(&mut seen, 90_300).3, 300);
        assert_eq!(pass(&mut seen, 90_600).1, "True Expired");
        assert_eq!(pass(&mut seen, 90_601).0, ["Expire"]);
        // What was known all the time needs no further notice.
        let mut known = self::seen("{}", "8h");
        known.cluster.status.get_or_insert_default().expiration_time = Some(Time(at(NOW + 28_800)));
        assert_eq!(pass(&mut known, 30_000).1, "True Expired");
    }
}
