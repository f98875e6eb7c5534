//! How long certificates hold and when they are made anew. One rule for all of them: when a third of the life is left.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::observed::{Observed, created_at};
use super::situation::later;
use crate::api::KubeconfigSecretRef;
use crate::api::conditions::Claim;
use crate::api::reasons::Reason;

const DAY: Duration = Duration::from_hours(24);

/// Life of an authority: of each cluster's three, and of the one behind the agents.
pub const AUTHORITY_LIFE: Duration = Duration::from_hours(10 * 365 * 24);

/// A cluster whose authorities have no more than this left should be made anew.
pub const AUTHORITY_NOTICE: Duration = Duration::from_hours(365 * 24);

/// Life of the two certificates on the channel between operator and agent.
pub const CHANNEL_LIFE: Duration = Duration::from_hours(365 * 24);

/// Life of a published kubeconfig, where the spec says nothing.
pub const KUBECONFIG_LIFE: Duration = Duration::from_hours(365 * 24);

/// Life of the credentials of a further user, where the spec says nothing.
pub const USER_LIFE: Duration = Duration::from_hours(24);

/// A node's certificate that has less than this left although it should have been renewed is told of.
const NODE_NOTICE: Duration = Duration::from_hours(30 * 24);

/// From when until when a certificate holds.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Validity {
    /// From when.
    pub begins: Timestamp,
    /// Until when.
    pub ends: Timestamp,
}

impl Validity {
    /// When it is to be made anew: with a third of its life left, so that whoever holds the old one has that time to take the new one over.
    pub fn renew_at(&self) -> Timestamp {
        let life = Duration::try_from(self.ends.duration_since(self.begins)).unwrap_or_default();
        earlier(self.ends, life / 3)
    }

    /// Whether it is time for that.
    pub fn is_due(&self, now: Timestamp) -> bool {
        now >= self.renew_at()
    }
}

/// `time` less `before`; the beginning of time if that is before it.
fn earlier(time: Timestamp, before: Duration) -> Timestamp {
    SignedDuration::try_from(before).ok().and_then(|before| time.checked_sub(before).ok()).unwrap_or(Timestamp::MIN)
}

/// What an agent says of the certificates that kubeadm and the kubelet keep on the control plane's nodes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCertificates {
    /// The node and the file of the one that ends first.
    pub first: String,
    /// When it ends.
    pub ends: Timestamp,
    /// Why they could not be renewed in time; `None` while nothing was due or all went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What the condition `CertificatesValid` says.
pub fn claim(now: Timestamp, seen: Option<&NodeCertificates>) -> Claim {
    let Some(seen) = seen else { return Claim::unknown(Reason::Pending, "the agent has not looked at the certificates of the nodes yet") };
    let first = format!("the first one to end is {}, at {}", seen.first, seen.ends);
    let expiring = |what: &str| Claim::no(Reason::CertificateExpiring, Reason::CertificateExpiring.explain(what));
    match &seen.failure {
        Some(failure) => expiring(&format!("{first}; {failure}")),
        None if now >= earlier(seen.ends, NODE_NOTICE) => expiring(&first),
        None => Claim::yes(Reason::CertificatesInTime, first),
    }
}

/// The keys Secret of a cluster, if it is there.
fn keys(seen: &Observed) -> Option<&ObjectMeta> {
    seen.children.keys.iter().find(|keys| keys.name.as_deref() == Some(&seen.identity.keys()) && keys.creation_timestamp.is_some())
}

/// When the authorities of a cluster end. They are as old as the Secret that holds them.
pub fn authorities_end(seen: &Observed) -> Option<Timestamp> {
    keys(seen).map(|keys| later(created_at(keys), AUTHORITY_LIFE))
}

/// Whether a cluster's authorities are so near their end that a new cluster should get new ones.
pub fn authorities_are_old(now: Timestamp, seen: &Observed) -> bool {
    authorities_end(seen).is_some_and(|end| now >= earlier(end, AUTHORITY_NOTICE))
}

/// When the published kubeconfig is to be written anew; `None` if there is none, or if no later one could be had.
pub fn kubeconfig_renewal(seen: &Observed) -> Option<Timestamp> {
    renewal(seen, seen.status().kubeconfig_secret_ref.as_ref()?)
}

/// The same of any published Secret.
pub fn renewal(seen: &Observed, published: &KubeconfigSecretRef) -> Option<Timestamp> {
    let ends = published.expiration_time.as_ref()?.0;
    // A certificate ends with its authority: what ends a day before that or later would not gain by it.
    if authorities_end(seen).is_some_and(|end| ends >= earlier(end, DAY)) {
        return None;
    }
    // Earlier operators have not said when; theirs hold for a year.
    Some(published.renewal_time.as_ref().map_or_else(|| earlier(ends, KUBECONFIG_LIFE / 3), |time| time.0))
}

/// Whether one of the published Secrets is to be renewed now.
pub fn is_any_due(now: Timestamp, seen: &Observed) -> bool {
    let mut published = seen.cluster.status.iter().flat_map(|status| status.kubeconfig_secret_ref.iter().chain(&status.further_secret_refs));
    published.any(|published| renewal(seen, published).is_some_and(|at| now >= at))
}

/// When the keys of the channel in a cluster's Secret are made anew, given what stands on it.
pub fn channel_renewal(keys: &ObjectMeta) -> Option<Timestamp> {
    keys.annotations.as_ref()?.get(crate::api::annotations::RENEW_AT)?.parse().ok()
}

/// Whether they are to be made anew now.
pub fn channel_is_due(now: Timestamp, seen: &Observed) -> bool {
    keys(seen).and_then(channel_renewal).is_some_and(|at| now >= at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::KubeconfigSecretRef;
    use crate::api::conditions;
    use crate::plan::decide::{Step, decide};
    use crate::plan::settle::{Outcome, settle};
    use crate::plan::testing::{self, NOW};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use rstest::rstest;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[rstest]
    #[case::an_hour(3600, 2400)]
    #[case::a_year(365 * 86_400, 365 * 86_400 / 3 * 2)]
    #[case::nothing(0, 0)]
    #[case::ends_before_it_begins(-5, -5)]
    fn a_third_of_the_life_is_left(#[case] life: i64, #[case] renewed: i64) {
        let validity = Validity { begins: at(NOW), ends: at(NOW + life) };
        assert_eq!(validity.renew_at().as_second() - NOW, renewed);
        assert!(validity.is_due(at(NOW + renewed)) && !validity.is_due(at(NOW + renewed - 1)));
    }

    #[rstest]
    #[case::fresh(300, None, Some(true), "CertificatesInTime")]
    #[case::renewal_failed(100, Some("kubeadm said no"), Some(false), "CertificateExpiring")]
    #[case::nobody_renews(29, None, Some(false), "CertificateExpiring")]
    fn a_failed_renewal_is_told(#[case] days: i64, #[case] failure: Option<&str>, #[case] status: Option<bool>, #[case] reason: &str) {
        let seen = NodeCertificates { first: "crane-control-plane: apiserver.crt".into(), ends: at(NOW + days * 86_400), failure: failure.map(str::to_owned) };
        let said = claim(at(NOW), Some(&seen));
        assert_eq!((said.status, said.reason.as_str()), (status, reason));
        assert!(said.message.contains("apiserver.crt") && said.message.contains(failure.unwrap_or_default()));
        assert_eq!(claim(at(NOW), None).status, None);
    }

    /// The age at which authorities become old.
    fn old() -> Duration {
        AUTHORITY_LIFE.saturating_sub(AUTHORITY_NOTICE)
    }

    fn with_keys(age: Duration) -> Observed {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 5);
        let created = earlier(at(NOW), age);
        seen.children.keys.iter_mut().for_each(|keys| keys.creation_timestamp = Some(Time(created)));
        seen
    }

    #[test]
    fn authorities_are_old_a_year_before_their_end() {
        assert!(!authorities_are_old(at(NOW), &with_keys(old().saturating_sub(DAY))));
        assert!(authorities_are_old(at(NOW), &with_keys(old())));
        let mut seen = with_keys(AUTHORITY_LIFE);
        seen.children.keys.clear();
        assert!(!authorities_are_old(at(NOW), &seen));
    }

    #[test]
    fn a_kubeconfig_is_renewed_unless_its_authority_ends_first() {
        let published = |ends: i64, renewed: Option<i64>| {
            let mut seen = with_keys(AUTHORITY_LIFE.saturating_sub(100 * DAY));
            seen.cluster.status.get_or_insert_default().kubeconfig_secret_ref = Some(KubeconfigSecretRef {
                name: "s".into(),
                digest: None,
                expiration_time: Some(Time(at(NOW + ends))),
                renewal_time: renewed.map(|second| Time(at(NOW + second))),
            });
            kubeconfig_renewal(&seen).map(|time| time.as_second() - NOW)
        };
        assert_eq!(published(3600, Some(2400)), Some(2400));
        assert_eq!(published(50 * 86_400, None), Some(50 * 86_400 - 365 * 86_400 / 3), "of an earlier operator");
        assert_eq!(published(100 * 86_400, Some(1)), None);
        assert_eq!(kubeconfig_renewal(&with_keys(DAY)), None);
    }

    #[test]
    fn the_channel_is_due_when_its_secret_says_so() {
        let mut seen = with_keys(DAY);
        assert!(!channel_is_due(at(NOW), &seen), "a Secret of an earlier operator");
        for (second, due) in [(NOW + 1, false), (NOW, true)] {
            let annotation = (crate::api::annotations::RENEW_AT.to_owned(), at(second).to_string());
            seen.children.keys.iter_mut().for_each(|keys| keys.annotations = Some([annotation.clone()].into()));
            assert_eq!(channel_is_due(at(NOW), &seen), due);
        }
    }

    #[test]
    fn old_authorities_ask_for_a_new_cluster_which_gets_new_ones() {
        let steps = |seen: &Observed| decide(at(NOW), seen).steps.iter().map(Step::name).collect::<Vec<_>>();
        let mut seen = with_keys(old());
        seen.cluster.status.get_or_insert_default().cluster_attempt = Some(1);
        let status = settle(at(NOW), &seen, &Outcome::default());
        let condition = conditions::get(&status.conditions, conditions::UP_TO_DATE).unwrap();
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "RecreateRequired"));
        assert!(!steps(&seen).contains(&"CreateKeys"), "not under a cluster that runs");
        seen.children.pods.clear();
        seen.cluster.status = None;
        assert_eq!(steps(&seen), ["Delete", "CreateKeys", "CreatePod"]);
        seen.children.keys.iter_mut().for_each(|keys| keys.creation_timestamp = Some(Time(at(NOW))));
        assert!(!steps(&seen).contains(&"CreateKeys"));
    }
}
