//! The further Secrets with credentials: one for each of `kubeconfig.users`, and the one in which Argo CD finds the cluster. When they are written, when
//! they go, and what is said about them.
//!
//! A name goes on record before its Secret is written: an operator that is killed in between knows what it may have left. And nobody vouches for a Secret any
//! more when it is taken away: an operator whose word on it comes too late, since somebody wants it again, writes it again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::certificates::{USER_LIFE, renewal};
use super::decide::{KubeconfigPlan, Step, kubeconfig};
use super::desired::{Desired, short_digest};
use super::names::Identity;
use super::observed::Observed;
use super::problem::Problem;
use super::settle::Outcome;
use super::situation::later;
use super::users;
use super::wire::{ADMIN_GROUP, USER_PREFIX};
use crate::api::conditions::Claim;
use crate::api::reasons::Reason;
use crate::api::{KindCluster, KindClusterStatus, KubeconfigSecretRef, KubeconfigUser};

/// A Secret that could not be written is tried again after so long, if nothing happens before: nobody tells us that what was in its way is gone.
const AGAIN: Duration = Duration::from_mins(1);

/// Who proves itself with the credentials in a published Secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Bearer {
    /// The administrator, in the Secret that every cluster has.
    Admin,
    /// One of `kubeconfig.users`.
    User {
        /// Its name.
        name: String,
        /// The groups that its certificate says it is in.
        groups: Vec<String>,
    },
    /// Argo CD.
    ArgoCd {
        /// Further labels of the Secret.
        labels: BTreeMap<String, String>,
    },
}

impl Bearer {
    /// Common name of the certificate.
    pub fn common_name(&self) -> String {
        match self {
            Self::Admin => "nestling:admin".to_owned(),
            Self::User { name, .. } => format!("{USER_PREFIX}{name}"),
            Self::ArgoCd { .. } => "nestling:argocd".to_owned(),
        }
    }

    /// Organizations of the certificate: the groups that the API server takes its bearer to be in.
    pub fn groups(&self) -> Vec<String> {
        match self {
            Self::Admin | Self::ArgoCd { .. } => vec![ADMIN_GROUP.to_owned()],
            Self::User { groups, .. } => groups.clone(),
        }
    }
}

/// Checks that no two published Secrets have one name.
///
/// # Errors
/// [`Reason::KubeconfigSecretConflict`].
pub fn check(cluster: &KindCluster, identity: &Identity) -> Result<(), Problem> {
    let main = cluster.spec.kubeconfig.as_ref().and_then(|kubeconfig| kubeconfig.secret_name.as_ref());
    match names(cluster, identity).into_iter().find(|name| main == Some(name)) {
        Some(name) => {
            Err(Problem::new(Reason::KubeconfigSecretConflict, format!("kubeconfig.secretName is {name}, which is the name of another of its Secrets")))
        }
        None => Ok(()),
    }
}

/// What the further Secrets are to hold; nothing while there is nothing to reach with it.
fn wanted(seen: &Observed, desired: &Desired) -> Vec<KubeconfigPlan> {
    let (Some(spec), true) = (&seen.cluster.spec.kubeconfig, serves(seen)) else { return vec![] };
    let Some(admin) = kubeconfig(seen, desired) else { return vec![] };
    let identity = &desired.identity;
    let plan = |secret: String, bearer: Bearer, lifetime: Duration, more: &str| {
        let digest = short_digest(&format!("{} {} {:?} {} {more}", admin.digest, bearer.common_name(), bearer.groups(), lifetime.as_secs()));
        KubeconfigPlan { secret, bearer, lifetime, digest, ..admin.clone() }
    };
    let of_user = |user: &KubeconfigUser| {
        let bearer = Bearer::User { name: user.name.clone(), groups: user.groups.clone() };
        plan(identity.user_secret(&user.name), bearer, user.lifetime.map_or(USER_LIFE, Duration::from), "")
    };
    let argo_cd = spec
        .argo_cd
        .iter()
        .map(|argo_cd| plan(identity.argo_cd_secret(), Bearer::ArgoCd { labels: argo_cd.labels.clone() }, admin.lifetime, &format!("{:?}", argo_cd.labels)));
    spec.users.iter().map(of_user).chain(argo_cd).collect()
}

fn serves(seen: &Observed) -> bool {
    seen.report.as_ref().is_some_and(|report| report.control_plane_ready)
}

/// The names that the spec gives rise to, whatever the cluster does.
fn names(cluster: &KindCluster, identity: &Identity) -> Vec<String> {
    let spec = cluster.spec.kubeconfig.as_ref();
    let users = spec.iter().flat_map(|spec| &spec.users).map(|user| identity.user_secret(&user.name));
    users.chain(spec.and_then(|spec| spec.argo_cd.as_ref()).map(|_| identity.argo_cd_secret())).collect()
}

fn recorded<'a>(status: &'a KindClusterStatus, plan: &KubeconfigPlan) -> Option<&'a KubeconfigSecretRef> {
    status.further_secret_refs.iter().find(|have| have.name == plan.secret)
}

fn is_written(status: &KindClusterStatus, plan: &KubeconfigPlan) -> bool {
    recorded(status, plan).is_some_and(|have| have.digest.as_deref() == Some(&plan.digest))
}

/// Whether its bearer may do what the spec says. A Secret is not written before.
fn is_entitled(seen: &Observed, plan: &KubeconfigPlan) -> bool {
    match &plan.bearer {
        Bearer::User { name, .. } => users::is_bound(seen, name),
        Bearer::Admin | Bearer::ArgoCd { .. } => true,
    }
}

fn is_due(now: Timestamp, seen: &Observed, status: &KindClusterStatus, plan: &KubeconfigPlan) -> bool {
    let Some(have) = recorded(status, plan) else { return false };
    let renew = renewal(seen, have).is_some_and(|time| now >= time);
    is_entitled(seen, plan) && (!is_written(status, plan) || renew)
}

/// Whether a Secret on record is one that nobody wants any more.
fn is_left<'a>(seen: &'a Observed, desired: &'a Desired) -> impl Fn(&KubeconfigSecretRef) -> bool + 'a {
    let names = names(&seen.cluster, &seen.identity);
    move |have| have.name != desired.kubeconfig_secret && !names.contains(&have.name)
}

/// What is to be written and taken away while the cluster runs.
pub fn steps(now: Timestamp, seen: &Observed, desired: &Desired) -> Vec<Step> {
    let (status, is_left) = (seen.status(), is_left(seen, desired));
    let gone = status.further_secret_refs.iter().filter(|have| is_left(have) && have.digest.is_none());
    let gone = gone.map(|have| Step::RetractKubeconfig { secret: have.name.clone() });
    let due = wanted(seen, desired).into_iter().filter(|plan| is_due(now, seen, &status, plan)).map(|plan| Step::PublishFurther(Box::new(plan)));
    gone.chain(due).collect()
}

/// What is to be taken away with the cluster: first of all what Argo CD has, which would see it fail otherwise.
pub fn retraction(seen: &Observed) -> Vec<Step> {
    let argo_cd = seen.identity.argo_cd_secret();
    let mut names: Vec<String> = seen.status().further_secret_refs.into_iter().map(|have| have.name).collect();
    names.sort_by_key(|name| *name != argo_cd);
    names.into_iter().map(|secret| Step::RetractKubeconfig { secret }).collect()
}

/// When to look again if nothing happens before.
pub fn next_look(now: Timestamp, seen: &Observed, desired: &Desired) -> Option<Timestamp> {
    let status = seen.status();
    let one = |plan: KubeconfigPlan| match recorded(&status, &plan) {
        // It is on record after this pass.
        None => Some(now),
        Some(_) if is_due(now, seen, &status, &plan) => Some(later(now, AGAIN)),
        Some(have) => renewal(seen, have).filter(|time| *time > now),
    };
    // It is not vouched for after this pass.
    let left = status.further_secret_refs.iter().any(is_left(seen, desired)).then_some(now);
    wanted(seen, desired).into_iter().filter_map(one).chain(left).min()
}

/// Puts on record what is to be written, and what is to be taken away.
pub fn record(seen: &Observed, desired: &Desired, status: &mut KindClusterStatus) {
    let is_left = is_left(seen, desired);
    for have in status.further_secret_refs.iter_mut().filter(|have| is_left(have)) {
        *have = unwritten(&have.name);
    }
    let renamed = is_renamed(status, desired).then(|| desired.kubeconfig_secret.clone());
    for name in wanted(seen, desired).into_iter().map(|plan| plan.secret).chain(renamed) {
        if !is_recorded(status, &name) {
            status.further_secret_refs.push(unwritten(&name));
        }
    }
}

fn unwritten(name: &str) -> KubeconfigSecretRef {
    KubeconfigSecretRef { name: name.to_owned(), ..KubeconfigSecretRef::default() }
}

fn is_recorded(status: &KindClusterStatus, name: &str) -> bool {
    status.further_secret_refs.iter().any(|have| have.name == name)
}

/// Whether the administrator's Secret is to have another name than it has.
fn is_renamed(status: &KindClusterStatus, desired: &Desired) -> bool {
    status.kubeconfig_secret_ref.as_ref().is_some_and(|have| have.name != desired.kubeconfig_secret)
}

/// Whether the administrator's Secret may be written: the first can be found by the spec alone, another name goes on record before.
pub fn may_publish(status: &KindClusterStatus, desired: &Desired) -> bool {
    !is_renamed(status, desired) || is_recorded(status, &desired.kubeconfig_secret)
}

/// The administrator's Secret has been written; one of an earlier name is to go.
pub fn record_admin(written: KubeconfigSecretRef, status: &mut KindClusterStatus) {
    let (is_it, earlier) = (|have: &KubeconfigSecretRef| have.name == written.name, status.kubeconfig_secret_ref.take());
    let left = earlier.filter(|earlier| !is_it(earlier)).map(|earlier| unwritten(&earlier.name));
    status.further_secret_refs.retain(|have| !is_it(have));
    status.further_secret_refs.extend(left);
    status.kubeconfig_secret_ref = Some(written);
}

/// What the condition `KubeconfigPublished` says, given what it says of the administrator's (`admin`), and whether that keeps the cluster from being ready. A
/// Secret that is refused does not; one that is on its way does before the cluster has been ready, so that whoever waited for that finds them all.
pub fn claim(admin: Claim, was_ready: bool, seen: &Observed, desired: Option<&Desired>, status: &KindClusterStatus, done: &Outcome) -> (Claim, bool) {
    if admin.status != Some(true) {
        // While it is renewed or gets another name, the one that was written still holds.
        return (admin, !was_ready || status.kubeconfig_secret_ref.is_none());
    }
    let plans = desired.map(|desired| wanted(seen, desired)).unwrap_or_default();
    let refused = plans.iter().find_map(|plan| done.refused.get(&plan.secret));
    if let Some(problem) = refused {
        return (Claim::no(problem.reason, problem.explain()), false);
    }
    let outdated = plans.iter().find(|plan| !is_entitled(seen, plan) && !users::can_be_bound(seen));
    if let Some(plan) = outdated {
        let what = format!("Secret {} is not written: the agent cannot bind a ClusterRole", plan.secret);
        return (Claim::no(Reason::AgentOutdated, Reason::AgentOutdated.explain(&what)), false);
    }
    let missing: Vec<&str> = plans.iter().filter(|plan| !is_written(status, plan)).map(|plan| plan.secret.as_str()).collect();
    if !missing.is_empty() {
        return (Claim::no(Reason::PublishingKubeconfig, format!("about to be published: {}", missing.join(", "))), !was_ready);
    }
    if plans.is_empty() {
        return (admin, false);
    }
    let further = plans.iter().map(|plan| plan.secret.as_str()).collect::<Vec<_>>().join(", ");
    (Claim { message: format!("{}; further ones in {further}", admin.message), ..admin }, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::conditions::{self, KUBECONFIG_PUBLISHED, READY, UP_TO_DATE};
    use crate::plan::decide::{Plan, decide, is_moving};
    use crate::plan::notes::notes;
    use crate::plan::settle::settle;
    use crate::plan::testing::{self, NOW};
    use crate::plan::wire::{AgentReport, NodeReport, OrdersReport, Stage};
    use rstest::rstest;

    const SPEC: &str = "{kubeconfig: {users: [{name: ci, clusterRole: view, lifetime: 10m}, {name: ops, groups: [a, b]}], argoCD: {labels: {env: dev}}}}";

    /// A cluster that serves, with an agent that carries orders out at once when it is told to.
    struct Serving {
        seen: Observed,
        second: i64,
        refused: BTreeMap<String, Problem>,
    }

    impl Serving {
        fn new(spec: &str) -> Self {
            let mut seen = testing::with_pod(testing::observed(testing::cluster(spec)), 60);
            seen.report = Some(AgentReport {
                stage: Stage::Serving,
                control_plane_ready: true,
                nodes: vec![NodeReport { name: "n".into(), control_plane: true, ready: true }],
                orders: Some(OrdersReport::default()),
                ..AgentReport::default()
            });
            Self { seen, second: NOW, refused: BTreeMap::new() }
        }

        fn now(&self) -> Timestamp {
            Timestamp::from_second(self.second).unwrap()
        }

        fn plan(&self) -> Plan {
            decide(self.now(), &self.seen)
        }

        /// One pass, in which everything is written but what is refused. Returns what was done.
        fn pass(&mut self) -> Vec<String> {
            let steps = self.plan().steps;
            let mut outcome = Outcome::default();
            let mut said = Vec::new();
            for step in steps {
                match &step {
                    Step::PublishKubeconfig(plan) | Step::PublishFurther(plan) => {
                        said.push(format!("+{}", plan.secret));
                        match self.refused.get(&plan.secret) {
                            Some(problem) => drop(outcome.refused.insert(plan.secret.clone(), problem.clone())),
                            None => drop(outcome.credentials_end.insert(plan.secret.clone(), later(self.now(), plan.lifetime))),
                        }
                    }
                    Step::RetractKubeconfig { secret } => said.push(format!("-{secret}")),
                    Step::Order(orders) => {
                        said.push(format!("order {}", orders.users.len()));
                        self.seen.report.as_mut().unwrap().orders.as_mut().unwrap().received = orders.clone();
                    }
                    other => said.push(other.name().to_owned()),
                }
                outcome.done.push(step);
            }
            self.seen.cluster.status = Some(settle(self.now(), &self.seen, &outcome));
            said
        }

        fn carry_out(&mut self) {
            let orders = self.seen.report.as_mut().unwrap().orders.as_mut().unwrap();
            orders.carried_out = orders.received.clone();
        }

        fn edit(&mut self, spec: &str) {
            self.seen.cluster.spec = testing::cluster(spec).spec;
        }

        fn says(&self, type_: &str) -> String {
            let status = self.seen.status();
            let condition = conditions::get(&status.conditions, type_).unwrap();
            format!("{} {}", condition.status, condition.reason)
        }

        /// Until all is at rest.
        fn settled(spec: &str) -> Self {
            let mut serving = Self::new(spec);
            serving.pass();
            serving.carry_out();
            serving.pass();
            assert_eq!(serving.pass(), Vec::<String>::new());
            serving
        }
    }

    #[test]
    fn names_go_on_record_before_secrets_and_rights_before_credentials() {
        let mut serving = Serving::new(SPEC);
        assert_eq!(serving.pass(), ["order 1", "+crane-kubeconfig"]);
        let names: Vec<String> = serving.seen.status().further_secret_refs.iter().map(|have| have.name.clone()).collect();
        assert_eq!(names, ["crane-kubeconfig-ci", "crane-kubeconfig-ops", "crane-argocd"]);
        assert_eq!(serving.plan().steps.len(), 2);
        assert_eq!((serving.says(READY), serving.says(KUBECONFIG_PUBLISHED)), ("False PublishingKubeconfig".into(), "False PublishingKubeconfig".into()));
        assert_eq!(serving.says(UP_TO_DATE), "False BindingUsers");
        assert_eq!(serving.pass(), ["+crane-kubeconfig-ops", "+crane-argocd"]);
        assert_eq!(serving.says(READY), "False PublishingKubeconfig", "whoever waits for it finds all Secrets");
        assert!(is_moving(&serving.seen.status(), true));
        serving.carry_out();
        assert_eq!(serving.pass(), ["+crane-kubeconfig-ci"]);
        assert_eq!((serving.says(READY), serving.says(KUBECONFIG_PUBLISHED)), ("True ClusterReady".into(), "True Published".into()));
        assert_eq!(serving.says(UP_TO_DATE), "True InSync");
        assert_eq!(serving.pass(), Vec::<String>::new());
        assert!(!is_moving(&serving.seen.status(), true));
    }

    #[test]
    fn the_successor_comes_with_a_third_left() {
        let mut serving = Serving::settled(SPEC);
        let wake = serving.plan().wake_at.unwrap();
        assert_eq!(wake.as_second() - NOW, 400, "two thirds of ten minutes");
        serving.second = NOW + 399;
        assert_eq!(serving.pass(), Vec::<String>::new());
        serving.second = NOW + 400;
        assert_eq!(serving.pass(), ["+crane-kubeconfig-ci"]);
        let status = serving.seen.status();
        let ends = |name: &str| status.further_secret_refs.iter().find(|have| have.name == name).unwrap().expiration_time.as_ref().unwrap().0.as_second() - NOW;
        assert_eq!((ends("crane-kubeconfig-ci"), ends("crane-kubeconfig-ops")), (1000, 86_400));
        assert_eq!((serving.says(READY), serving.pass()), ("True ClusterReady".into(), vec![]));
    }

    #[test]
    fn users_come_and_go_while_the_cluster_stays_ready() {
        let mut serving = Serving::settled("{}");
        let before = serving.seen.status();
        serving.edit(SPEC);
        serving.pass();
        assert_eq!((serving.says(READY), serving.says(KUBECONFIG_PUBLISHED)), ("True ClusterReady".into(), "False PublishingKubeconfig".into()));
        assert_eq!(notes(&before, &serving.seen.status()), []);
        serving.carry_out();
        serving.pass();
        assert_eq!(serving.says(KUBECONFIG_PUBLISHED), "True Published");
        serving.edit("{kubeconfig: {users: [{name: ops, groups: [a]}]}}");
        assert_eq!(serving.pass(), ["order 0", "+crane-kubeconfig-ops"]);
        assert_eq!(serving.plan().wake_at, Some(serving.now()), "what goes is on record first");
        assert_eq!(serving.pass(), ["-crane-kubeconfig-ci", "-crane-argocd"]);
        let left: Vec<String> = serving.seen.status().further_secret_refs.into_iter().map(|have| have.name).collect();
        assert_eq!((left, serving.says(UP_TO_DATE)), (vec!["crane-kubeconfig-ops".to_owned()], "False BindingUsers".to_owned()));
        serving.carry_out();
        assert_eq!((serving.pass(), serving.says(UP_TO_DATE)), (vec![], "True InSync".to_owned()));
    }

    #[test]
    fn who_is_wanted_again_before_the_secret_is_gone_gets_it_again() {
        let mut serving = Serving::settled(SPEC);
        serving.edit("{}");
        serving.pass();
        // Taken away by an operator whose word on it comes too late.
        assert_eq!(serving.plan().steps.len(), 3);
        serving.edit(SPEC);
        assert_eq!(serving.pass(), ["order 1", "+crane-kubeconfig-ci", "+crane-kubeconfig-ops", "+crane-argocd"]);
    }

    #[test]
    fn another_name_is_on_record_before_it_is_used_and_the_earlier_one_goes_last() {
        let mut serving = Serving::settled("{}");
        serving.edit("{kubeconfig: {secretName: other}}");
        assert_eq!((serving.pass(), serving.says(READY)), (vec![], "True ClusterReady".to_owned()));
        assert_eq!(serving.pass(), ["+other"]);
        assert_eq!(serving.says(KUBECONFIG_PUBLISHED), "True Published");
        assert_eq!(serving.pass(), ["-crane-kubeconfig"]);
        assert_eq!((serving.pass(), serving.seen.status().further_secret_refs), (vec![], vec![]));
        serving.edit("{}");
        serving.pass();
        serving.edit("{kubeconfig: {secretName: other}}");
        assert_eq!(serving.pass(), ["-crane-kubeconfig"], "an operator that was killed may have written it");
    }

    #[test]
    fn another_role_is_bound_and_the_credentials_stay() {
        let mut serving = Serving::settled(SPEC);
        serving.edit(&SPEC.replace("view", "edit"));
        assert_eq!((serving.pass(), serving.says(READY)), (vec!["order 1".to_owned()], "True ClusterReady".to_owned()));
        serving.carry_out();
        assert_eq!(serving.pass(), Vec::<String>::new());
    }

    #[test]
    fn a_secret_that_is_refused_holds_nothing_else_up() {
        let mut serving = Serving::new(SPEC);
        serving.refused.insert("crane-kubeconfig-ci".into(), Problem::new(Reason::KubeconfigSecretConflict, "it is another's"));
        serving.pass();
        serving.carry_out();
        let before = serving.seen.status();
        assert_eq!(serving.pass().len(), 3);
        assert_eq!((serving.says(READY), serving.says(KUBECONFIG_PUBLISHED)), ("True ClusterReady".into(), "False KubeconfigSecretConflict".into()));
        let told: Vec<(bool, &str)> = notes(&before, &serving.seen.status()).iter().map(|note| (note.warning, note.reason)).collect();
        assert_eq!(told, [(false, "Ready"), (true, "KubeconfigSecretConflict")]);
        assert_eq!(serving.plan().wake_at.unwrap(), later(serving.now(), AGAIN), "nobody tells us when it is gone");
        serving.refused.clear();
        assert_eq!(serving.pass(), ["+crane-kubeconfig-ci"]);
        assert_eq!(serving.says(KUBECONFIG_PUBLISHED), "True Published");
    }

    #[test]
    fn an_agent_that_binds_nobody_is_told_of() {
        let mut serving = Serving::settled("{}");
        serving.seen.report.as_mut().unwrap().orders = None;
        serving.edit(SPEC);
        serving.pass();
        assert_eq!(serving.pass(), ["+crane-kubeconfig-ops", "+crane-argocd"]);
        assert_eq!((serving.says(READY), serving.says(KUBECONFIG_PUBLISHED)), ("True ClusterReady".into(), "False AgentOutdated".into()));
    }

    #[test]
    fn argo_cd_forgets_a_cluster_before_it_goes() {
        let mut serving = Serving::settled(SPEC);
        serving.seen.cluster.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(serving.now()));
        let done = serving.pass();
        assert_eq!(done[..5], ["-crane-argocd", "-crane-kubeconfig-ci", "-crane-kubeconfig-ops", "-crane-kubeconfig", "Delete"]);
        assert_eq!(serving.seen.status().further_secret_refs, []);
    }

    #[rstest]
    #[case("{kubeconfig: {secretName: crane-kubeconfig-ci, users: [{name: ci, clusterRole: view}]}}", true)]
    #[case("{kubeconfig: {secretName: crane-argocd, argoCD: {}}}", true)]
    #[case("{kubeconfig: {secretName: crane-argocd, users: [{name: ci, clusterRole: view}]}}", false)]
    fn no_two_secrets_have_one_name(#[case] spec: &str, #[case] refused: bool) {
        let cluster = testing::cluster(spec);
        assert_eq!(check(&cluster, &testing::identity(&cluster)).is_err(), refused);
    }
}
