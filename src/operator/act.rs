//! Carrying out a plan: the only writer of children, of the finalizer and of published kubeconfigs. In order, up to the first failure.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use nestling_core::api::reasons::Reason;
use nestling_core::api::{FIELD_MANAGER, KindCluster, annotations};
use nestling_core::plan::certificates::CHANNEL_LIFE;
use nestling_core::plan::contents::{self, ContentsPlan, Origin, Source};
use nestling_core::plan::decide::{Child, ChildKind, KubeconfigPlan, Step};
use nestling_core::plan::evidence::LogsPlan;
use nestling_core::plan::names::Identity;
use nestling_core::plan::objects::{kubeconfig_secret, logs_secret, owns_labels};
use nestling_core::plan::observed::Observed;
use nestling_core::plan::problem::Problem;
use nestling_core::plan::references::References;
use nestling_core::plan::registries::{self, RegistriesPlan};
use nestling_core::plan::settle::Outcome;
use nestling_core::plan::wire::{ManifestText, Orders};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use tracing::info;

use super::agent_client::AgentError;
use super::backoff::Held;
use super::call::{CallError, Trouble, call};
use super::fence::Fence;
use super::key::Key;
use super::leftovers::{self, Cleared};
use super::logs::LogStore;
use super::metrics::Metrics;
use super::observe::owner_uid;
use super::pki::{Authority, PkiError, channel_keys, cluster_keys};
use super::reports::Reports;
use super::{fault, kubeconfig, patches};

/// Writes.
pub struct Actor {
    /// Towards the host cluster.
    pub client: Client,
    /// What the client heeds by itself, for orders.
    pub fence: Fence,
    /// The authority behind the agents' certificates; another one follows in time.
    pub agents: watch::Receiver<Authority>,
    /// Towards the agents.
    pub reports: Arc<Reports>,
    /// What failed attempts have left.
    pub logs: Arc<LogStore>,
    /// Counts steps.
    pub metrics: Arc<Metrics>,
}

/// What became of a plan, and of the object meanwhile.
#[derive(Debug, Default)]
pub struct Acted {
    /// For [`settle`](nestling_core::plan::settle::settle).
    pub outcome: Outcome,
    /// The object as the last write to it left it.
    pub cluster: Option<KindCluster>,
    /// Why the plan ended early, if not for a problem.
    pub cut_short: Option<CutShort>,
    /// Whether the problem is an earlier one, and the step was left out.
    pub held: bool,
}

/// Why a plan ended early though nothing is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CutShort {
    /// What was seen is out of date: look again.
    Stale,
    /// The user's namespace is being deleted; the object's own deletion is on its way.
    NamespaceTerminating,
    /// The object is gone.
    Gone,
}

/// A step that was not carried out.
#[derive(Debug, Eq, PartialEq)]
enum StepError {
    CutShort(CutShort),
    Problem(Problem),
}

impl From<PkiError> for StepError {
    fn from(error: PkiError) -> Self {
        Self::Problem(Problem::new(Reason::HostRefused, error.to_string()))
    }
}

impl From<Problem> for StepError {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<CallError> for StepError {
    /// Of a call in which it makes no difference what was missing.
    fn from(error: CallError) -> Self {
        match error.trouble() {
            Trouble::Conflict | Trouble::TestFailed => Self::CutShort(CutShort::Stale),
            Trouble::NamespaceTerminating => Self::CutShort(CutShort::NamespaceTerminating),
            Trouble::Gone => Self::Problem(Problem::new(Reason::HostRefused, error.to_string())),
            Trouble::Refused(problem) | Trouble::Unavailable(problem) => Self::Problem(problem),
        }
    }
}

/// What was not given to an agent.
fn unheard(error: &AgentError) -> StepError {
    let reason = match error {
        // No such path, or a wish that it has never heard of.
        AgentError::Refused(_) => Reason::AgentOutdated,
        _ => Reason::AgentUnreachable,
    };
    StepError::Problem(Problem::new(reason, error.to_string()))
}

const STALE: StepError = StepError::CutShort(CutShort::Stale);

impl Actor {
    /// Carries out the steps, up to one that is held.
    pub async fn act(&self, seen: &Observed, steps: Vec<Step>, held: Option<&Held>) -> Acted {
        let mut acted = Acted::default();
        for step in steps {
            let name = step.name();
            if let Some(held) = held.filter(|held| held.step == name) {
                acted.outcome.failed = Some((step, held.problem.clone()));
                acted.held = true;
                break;
            }
            match self.carry_out(seen, &step, &mut acted).await {
                Ok(done) => {
                    info!(step = name, "done");
                    self.metrics.step(name, "done");
                    acted.outcome.done.push(done.unwrap_or(step));
                    fault::after_step(name);
                }
                Err(StepError::CutShort(why)) => {
                    info!(step = name, ?why, "not done");
                    self.metrics.step(name, "cut short");
                    acted.cut_short = Some(why);
                    break;
                }
                Err(StepError::Problem(problem)) => {
                    self.metrics.step(name, "failed");
                    acted.outcome.failed = Some((step, problem));
                    break;
                }
            }
        }
        acted
    }

    /// Carries out one step. Returns what was really done, where that says more than the step.
    async fn carry_out(&self, seen: &Observed, step: &Step, acted: &mut Acted) -> Result<Option<Step>, StepError> {
        match step {
            Step::AddFinalizer => acted.cluster = Some(self.patch_cluster(seen, &patches::add_finalizer(&seen.cluster)).await?),
            Step::RemoveFinalizer => {
                if let Some(patch) = patches::remove_finalizer(&seen.cluster) {
                    match self.patch_cluster(seen, &patch).await {
                        Ok(_) | Err(StepError::CutShort(CutShort::Gone)) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Step::CreateKeys => self.create_keys(seen).await?,
            Step::RenewChannel { uid } => self.renew_channel(seen, uid).await?,
            Step::ApplyRegistries(plan) => self.apply_registries(seen, plan).await?,
            Step::ApplyNetworkPolicy(policy) => self.apply::<NetworkPolicy>(seen, "apply the network policy", policy).await?,
            Step::ApplyService(service) => self.apply::<Service>(seen, "apply the Service", service).await?,
            Step::ApplyVolumeClaim(claim) => self.apply::<PersistentVolumeClaim>(seen, "apply the claim on the cluster's volume", claim).await?,
            Step::CreatePod(pod) => return self.create_pod(seen, pod).await.map(|pod| Some(Step::CreatePod(Box::new(pod)))),
            Step::PublishKubeconfig(plan) => {
                let ends = self.publish(seen, plan).await?;
                acted.outcome.credentials_end.insert(plan.secret.clone(), ends);
            }
            Step::PublishFurther(plan) => self.publish_further(seen, plan, &mut acted.outcome).await?,
            Step::RetractKubeconfig { secret } => self.retract(seen, "find the Secret with the kubeconfig", secret).await?,
            Step::Order(orders) => self.order(seen, orders).await?,
            Step::SendContents(plan) => self.send_contents(seen, plan).await?,
            Step::KeepLogs(plan) => acted.outcome.logs_refused = self.keep_logs(plan).await?,
            Step::DropLogs { secret } => self.retract(seen, "find the Secret with logs", secret).await?,
            Step::Expire => acted.cluster = Some(self.expire(seen).await?),
            Step::Delete(child) => self.delete(seen, child).await?,
        }
        Ok(None)
    }

    async fn patch_cluster(&self, seen: &Observed, patch: &Patch<()>) -> Result<KindCluster, StepError> {
        let api: Api<KindCluster> = Api::namespaced(self.client.clone(), &seen.identity.namespace);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        call("change the finalizers of the KindCluster", api.patch(&seen.identity.name, &params, patch)).await.map_err(|error| match error.trouble() {
            Trouble::Gone => StepError::CutShort(CutShort::Gone),
            _ => error.into(),
        })
    }

    /// Deletes the object, unless it has changed since it was read: who gives it more time in the last moment wins.
    async fn expire(&self, seen: &Observed) -> Result<KindCluster, StepError> {
        let cluster = &seen.cluster;
        info!(created = ?cluster.creation_timestamp(), lifecycle = ?cluster.spec.lifecycle, "the cluster's time is over; deleting the KindCluster");
        let api: Api<KindCluster> = Api::namespaced(self.client.clone(), &seen.identity.namespace);
        let preconditions = Preconditions { uid: cluster.uid(), resource_version: cluster.resource_version() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match call("delete the KindCluster", api.delete(&seen.identity.name, &params)).await {
            Ok(answer) => answer.left().ok_or(StepError::CutShort(CutShort::Gone)),
            Err(error) if error.is_gone() => Err(StepError::CutShort(CutShort::Gone)),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the agent of the current pod what is wanted of it.
    async fn order(&self, seen: &Observed, orders: &Orders) -> Result<(), StepError> {
        let pod = self.pod_to_tell(seen)?;
        self.reports.order(&seen.identity, pod, orders).await.map_err(|error| unheard(&error))
    }

    /// The current pod, whose agent only the leader tells what to do.
    fn pod_to_tell<'a>(&self, seen: &'a Observed) -> Result<&'a Pod, StepError> {
        let pod = seen.children.current_pod().ok_or(STALE)?;
        self.fence.check().map_err(|error| StepError::Problem(Problem::new(Reason::HostUnavailable, error.to_string())))?;
        Ok(pod)
    }

    /// Reads what the manifests refer to in the user's namespace, by name only, and gives it all to the agent of the current pod.
    async fn send_contents(&self, seen: &Observed, plan: &ContentsPlan) -> Result<(), StepError> {
        let mut manifests = Vec::new();
        for Source { name, origin } in &plan.sources {
            let text = match origin {
                Origin::Inline(text) => text.clone(),
                Origin::ConfigMap(map) => {
                    contents::of_config_map(&self.refer(&plan.references, "read a ConfigMap that the KindCluster refers to", map).await?)?
                }
                Origin::Secret(secret) => contents::of_secret(&self.refer(&plan.references, "read a Secret that the KindCluster refers to", secret).await?)?,
            };
            manifests.push(ManifestText { name: name.clone(), text, secret: matches!(origin, Origin::Secret(_)) });
        }
        let contents = plan.contents(manifests)?;
        let pod = self.pod_to_tell(seen)?;
        self.reports.fill(&seen.identity, pod, &contents).await.map_err(|error| unheard(&error))
    }

    /// An API of the clusters namespace.
    fn children<K>(&self, seen: &Observed) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &seen.settings.clusters_namespace)
    }

    async fn apply<K>(&self, seen: &Observed, what: &'static str, object: &K) -> Result<(), StepError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Serialize + Debug,
    {
        let name = object.meta().name.clone().unwrap_or_default();
        call(what, self.children::<K>(seen).patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object))).await?;
        Ok(())
    }

    /// Made once: a Secret that is there already is kept, whatever the caches say.
    async fn create_keys(&self, seen: &Observed) -> Result<(), StepError> {
        let identity = &seen.identity;
        let (agents, now) = (self.agents.borrow().clone(), Timestamp::now());
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(identity.keys()),
                labels: Some(identity.labels(&seen.settings.install)),
                annotations: Some(BTreeMap::from([renewal(&agents, now)?])),
                ..ObjectMeta::default()
            },
            data: Some(cluster_keys(identity, &agents, now)?),
            ..Secret::default()
        };
        let api = self.children::<Secret>(seen);
        match call("create the Secret with the cluster's keys", api.create(&params(), &secret)).await {
            Ok(_) => Ok(()),
            Err(error) if error.trouble() == Trouble::Conflict => {
                let existing = call("read the Secret with the cluster's keys", api.get_metadata_opt(&identity.keys())).await?;
                self.expect_ours::<Secret>(seen, existing.map(|secret| secret.metadata)).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the keys of the channel to the agent anew; all others in the Secret stay. The kubelet brings them into the pod.
    async fn renew_channel(&self, seen: &Observed, uid: &str) -> Result<(), StepError> {
        let (agents, now) = (self.agents.borrow().clone(), Timestamp::now());
        let (annotation, at) = renewal(&agents, now)?;
        // The UID is a precondition.
        let patch = json!({"metadata": {"uid": uid, "annotations": {annotation: at}}, "data": channel_keys(&seen.identity, &agents, now)?});
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let api = self.children::<Secret>(seen);
        match call("renew the keys of the channel to the agent", api.patch_metadata(&seen.identity.keys(), &params, &Patch::Merge(patch))).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_gone() => Err(STALE),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what registries want to see in the user's namespace, by name only, and copies it beside the pod.
    async fn apply_registries(&self, seen: &Observed, plan: &RegistriesPlan) -> Result<(), StepError> {
        let mut held = BTreeMap::new();
        for source in &plan.sources {
            let mut found = registries::Held::default();
            if let Some(name) = &source.credentials {
                let secret: Secret = self.refer(&plan.references, "read a Secret that the KindCluster refers to", name).await?;
                found.login = Some(registries::login(&secret, &source.host)?);
            }
            if let Some(name) = &source.authority {
                let map: ConfigMap = self.refer(&plan.references, "read a ConfigMap that the KindCluster refers to", name).await?;
                found.authority = Some(registries::authority(&map)?);
            }
            held.insert(source.host.clone(), found);
        }
        self.apply::<Secret>(seen, "apply the Secret for registries", &registries::secret(plan, held)).await
    }

    /// An object of the user's namespace, which has to let us.
    async fn refer<K>(&self, references: &References, what: &'static str, name: &str) -> Result<K, StepError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &references.namespace);
        let kind = K::kind(&());
        call(what, api.get(name)).await.map_err(|error| match error.trouble() {
            Trouble::Gone => StepError::Problem(references.missing(&kind, name)),
            Trouble::Refused(_) if error.is_forbidden() => StepError::Problem(references.denied(&kind, name)),
            _ => error.into(),
        })
    }

    async fn create_pod(&self, seen: &Observed, pod: &Pod) -> Result<Pod, StepError> {
        let api = self.children::<Pod>(seen);
        match call("create the pod", api.create(&params(), pod)).await {
            Ok(created) => Ok(created),
            Err(error) if error.trouble() == Trouble::Conflict => {
                let name = pod.metadata.name.clone().unwrap_or_default();
                let existing = call("read the pod", api.get_metadata_opt(&name)).await?;
                // Ours: the caches are behind.
                self.expect_ours::<Pod>(seen, existing.map(|pod| pod.metadata)).await.and(Err(STALE))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// An object that was in the way of a creation: ours, gone meanwhile (look again), left by an earlier object of this name, or another's.
    async fn expect_ours<K>(&self, seen: &Observed, existing: Option<ObjectMeta>) -> Result<(), StepError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let existing = existing.ok_or(STALE)?;
        if owner_uid(&existing) == Some(&seen.identity.uid) {
            return Ok(());
        }
        let (kind, name) = (K::kind(&()), existing.name.as_deref().unwrap_or_default());
        Err(match leftovers::clear::<K>(&self.client, seen, &existing).await? {
            Cleared::Soon => STALE,
            Cleared::Lingers => {
                let message = format!("{kind} {name} of an earlier KindCluster of this name is still being deleted");
                StepError::Problem(Problem::new(Reason::HostRefused, message))
            }
            Cleared::Foreign => taken(&kind, name),
        })
    }

    async fn delete(&self, seen: &Observed, child: &Child) -> Result<(), StepError> {
        match child.kind {
            ChildKind::Pod => self.delete_one::<Pod>(seen, "delete the pod", child).await,
            ChildKind::Service => self.delete_one::<Service>(seen, "delete the Service", child).await,
            ChildKind::NetworkPolicy => self.delete_one::<NetworkPolicy>(seen, "delete the network policy", child).await,
            ChildKind::Keys => self.delete_one::<Secret>(seen, "delete a Secret beside the pod", child).await,
            ChildKind::VolumeClaim => self.delete_one::<PersistentVolumeClaim>(seen, "delete the claim on the cluster's volume", child).await,
        }
    }

    async fn delete_one<K>(&self, seen: &Observed, what: &'static str, child: &Child) -> Result<(), StepError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        Ok(delete_exactly(what, &self.children::<K>(seen), &child.name, &child.uid).await?)
    }

    /// Publishes the kubeconfig. A Secret of that name that is not ours is left as it is.
    async fn publish(&self, seen: &Observed, plan: &KubeconfigPlan) -> Result<Timestamp, StepError> {
        let keys = match call("read the cluster's keys", self.children::<Secret>(seen).get(&plan.identity.keys())).await {
            Err(error) if error.is_gone() => return Err(STALE),
            keys => keys?,
        };
        if owner_uid(&keys.metadata) != Some(&plan.identity.uid) {
            return Err(taken("Secret", &plan.identity.keys()));
        }
        let (credentials, expires) = kubeconfig::mint(&keys, &plan.bearer, Timestamp::now(), plan.lifetime)?;
        let secret = kubeconfig_secret(plan, &credentials);
        let written = self.put(&plan.identity, &secret, owns_labels(plan), "write the Secret with the kubeconfig").await;
        written.map(|()| expires).map_err(|error| match error.trouble() {
            Trouble::TestFailed => StepError::Problem(Problem::new(Reason::KubeconfigSecretConflict, anothers(&plan.secret, &plan.identity))),
            // A Secret that went meanwhile, or the namespace, and soon the object.
            Trouble::Gone => STALE,
            _ => not_written(error),
        })
    }

    /// Publishes further credentials. What refuses them is said and holds nothing up, unless it may be over soon.
    async fn publish_further(&self, seen: &Observed, plan: &KubeconfigPlan, outcome: &mut Outcome) -> Result<(), StepError> {
        match self.publish(seen, plan).await {
            Ok(ends) => drop(outcome.credentials_end.insert(plan.secret.clone(), ends)),
            Err(StepError::Problem(problem)) if problem.reason != Reason::HostUnavailable => {
                info!(secret = plan.secret, %problem, "not written");
                outcome.refused.insert(plan.secret.clone(), problem);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Writes the logs of a failed attempt down. What keeps them from being written is said and holds nothing up, unless it may be over soon.
    async fn keep_logs(&self, plan: &LogsPlan) -> Result<Option<Problem>, StepError> {
        let key = Key { namespace: plan.identity.namespace.clone(), name: plan.identity.name.clone() };
        let archive = self.logs.archive(&key, plan.attempt).ok_or(STALE)?;
        let secret = logs_secret(plan, archive.to_vec());
        let Err(error) = self.put(&plan.identity, &secret, false, "write the Secret with logs").await else { return Ok(None) };
        match error.trouble() {
            Trouble::TestFailed => Ok(Some(Problem::new(Reason::HostRefused, anothers(&plan.secret, &plan.identity)))),
            Trouble::Refused(problem) => Ok(Some(problem)),
            Trouble::Gone => Err(STALE),
            _ => Err(error.into()),
        }
    }

    /// Writes a Secret in the user's namespace, where we may not read any. One of that name that is not ours is left as it is: [`Trouble::TestFailed`].
    async fn put(&self, identity: &Identity, secret: &Secret, owns_labels: bool, what: &'static str) -> Result<(), CallError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &identity.namespace);
        match call(what, api.create(&params(), secret)).await {
            Ok(_) => return Ok(()),
            Err(error) if error.trouble() == Trouble::Conflict => {}
            Err(error) => return Err(error),
        }
        let patch = patches::republish(&identity.uid, secret, owns_labels);
        call(what, api.patch_metadata(&secret.name_any(), &PatchParams::default(), &patch)).await.map(|_| ())
    }

    /// Takes a Secret of the user's namespace away, if it is ours. We may not read Secrets there, so a patch that changes nothing tells the UID.
    async fn retract(&self, seen: &Observed, what: &'static str, secret: &str) -> Result<(), StepError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &seen.identity.namespace);
        let patch = patches::only_if_ours(&seen.identity.uid);
        let ours = match call(what, api.patch_metadata(secret, &PatchParams::default(), &patch)).await {
            Ok(ours) => ours.metadata,
            Err(error) if matches!(error.trouble(), Trouble::Gone | Trouble::TestFailed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let uid = ours.uid.unwrap_or_default();
        Ok(delete_exactly("delete a Secret of the user's namespace", &api, secret, &uid).await?)
    }
}

/// Deletes an object of exactly this UID. One that is gone, or another of the same name, is none of our business.
pub async fn delete_exactly<K>(what: &'static str, api: &Api<K>, name: &str, uid: &str) -> Result<(), CallError>
where
    K: Clone + DeserializeOwned + Debug,
{
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
    match call(what, api.delete(name, &params)).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.trouble(), Trouble::Gone | Trouble::Conflict) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The annotation that says when the keys of the channel, made now, are to be made anew.
fn renewal(agents: &Authority, now: Timestamp) -> Result<(String, String), PkiError> {
    Ok((annotations::RENEW_AT.to_owned(), agents.issued_validity(now, CHANNEL_LIFE)?.renew_at().to_string()))
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

fn taken(kind: &str, name: &str) -> StepError {
    StepError::Problem(Problem::new(Reason::HostRefused, format!("{kind} {name} in the clusters namespace belongs to another cluster")))
}

fn anothers(secret: &str, identity: &Identity) -> String {
    format!("Secret {secret} in namespace {} exists and is not this cluster's", identity.namespace)
}

fn not_written(error: CallError) -> StepError {
    match error.into() {
        StepError::Problem(problem) if problem.reason == Reason::HostRefused => {
            StepError::Problem(Problem { reason: Reason::KubeconfigWriteFailed, ..problem })
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;

    use nestling_core::plan::certificates::KUBECONFIG_LIFE;
    use nestling_core::plan::credentials::Bearer;
    use nestling_core::plan::decide::Plan;
    use serde_json::Value;
    use tokio::time::{Duration, Instant};

    use crate::operator::agent_client;
    use crate::operator::key::Triggers;
    use crate::operator::mock::{self, Answer, Mock};
    use crate::operator::reports::Reports;

    const UID: &str = "0b5c5c4e-0000-4000-8000-000000000001";
    const CLUSTER: &str = "/apis/nestling.dev/v1alpha1/namespaces/marsh/kindclusters/crane";
    const PUBLISHED: &str = "/api/v1/namespaces/marsh/secrets";

    fn seen(finalizers: &[&str]) -> Observed {
        mock::seen(json!({
            "metadata": {"name": "crane", "namespace": "marsh", "uid": UID, "resourceVersion": "7", "finalizers": finalizers}, "spec": {},
        }))
    }

    fn actor(client: Client) -> Actor {
        let agents = Authority::new("agents", Timestamp::now()).unwrap();
        let (triggers, metrics) = (Triggers::new().0, Arc::new(Metrics::new()));
        let reports = Reports::new(agent_client::tests::client(&agents), None, triggers.clone(), Arc::clone(&metrics));
        let logs = LogStore::new(Arc::clone(&reports), triggers, Arc::clone(&metrics));
        Actor { client, fence: Fence::new(Instant::now(), Duration::from_mins(10)), agents: watch::channel(agents).1, reports, logs, metrics }
    }

    async fn act<F: Future<Output = ()> + Send + 'static>(seen: &Observed, step: Step, script: impl FnOnce(Mock) -> F) -> Acted {
        let (client, mock) = Mock::new();
        let server = tokio::spawn(script(mock));
        let actor = actor(client);
        let plan = Plan { steps: vec![step], wake_at: None };
        let acted = tokio::time::timeout(Duration::from_secs(20), Box::pin(actor.act(seen, plan.steps, None))).await.expect("act is bounded");
        server.await.unwrap();
        acted
    }

    fn answer_cluster(version: &str) -> Answer {
        Answer::ok(json!({"metadata": {"name": "crane", "namespace": "marsh", "uid": UID, "resourceVersion": version}, "spec": {}}))
    }

    #[tokio::test]
    async fn the_finalizer_is_added_to_what_was_read_and_nothing_newer() {
        let acted = act(&seen(&[]), Step::AddFinalizer, async |mut mock: Mock| {
            let sent = mock.expect("PATCH", CLUSTER, answer_cluster("8")).await;
            assert_eq!(
                sent,
                json!([
                    {"op": "test", "path": "/metadata/uid", "value": UID},
                    {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                    {"op": "add", "path": "/metadata/finalizers", "value": ["nestling.dev/cluster"]},
                ])
            );
            mock.done().await;
        })
        .await;
        assert_eq!(acted.cluster.unwrap().metadata.resource_version.as_deref(), Some("8"));
        let stale = act(&seen(&["other"]), Step::AddFinalizer, async |mut mock: Mock| {
            let sent = mock.expect("PATCH", CLUSTER, Answer::failed_test()).await;
            assert_eq!(sent[2], json!({"op": "add", "path": "/metadata/finalizers/-", "value": "nestling.dev/cluster"}));
        })
        .await;
        assert_eq!(stale.cut_short, Some(CutShort::Stale));
        assert!(stale.outcome.done.is_empty());
    }

    #[tokio::test]
    async fn only_our_finalizer_is_removed_and_an_object_that_is_gone_is_finished() {
        for (answer, cut_short) in [(answer_cluster("8"), None), (Answer::missing(), None), (Answer::failed_test(), Some(CutShort::Stale))] {
            let acted = act(&seen(&["other", "nestling.dev/cluster"]), Step::RemoveFinalizer, async move |mut mock: Mock| {
                let sent = mock.expect("PATCH", CLUSTER, answer).await;
                assert_eq!(
                    sent,
                    json!([
                        {"op": "test", "path": "/metadata/uid", "value": UID},
                        {"op": "test", "path": "/metadata/finalizers/1", "value": "nestling.dev/cluster"},
                        {"op": "remove", "path": "/metadata/finalizers/1"},
                    ])
                );
            })
            .await;
            assert_eq!(acted.cut_short, cut_short);
            assert_eq!(acted.outcome.done.is_empty(), cut_short.is_some());
        }
    }

    fn plan() -> Step {
        Step::PublishKubeconfig(Box::new(kubeconfig_plan(Bearer::Admin)))
    }

    fn kubeconfig_plan(bearer: Bearer) -> KubeconfigPlan {
        KubeconfigPlan {
            identity: seen(&[]).identity,
            secret: "crane-kubeconfig".into(),
            bearer,
            internal: "https://c.clusters.svc:6443".into(),
            external: None,
            lifetime: KUBECONFIG_LIFE,
            tls_server_name: "c.clusters.svc".into(),
            digest: "d".into(),
            install: "reed".into(),
        }
    }

    /// The Secret with the keys, as the API server has it.
    fn keys() -> Value {
        let seen = seen(&[]);
        let agents = Authority::new("agents", Timestamp::now()).unwrap();
        let secret = Secret {
            metadata: ObjectMeta { name: Some(seen.identity.keys()), labels: Some(seen.identity.labels("reed")), ..ObjectMeta::default() },
            data: Some(cluster_keys(&seen.identity, &agents, Timestamp::now()).unwrap()),
            ..Secret::default()
        };
        serde_json::to_value(secret).unwrap()
    }

    async fn publish(create: Answer, patch: Option<Answer>) -> Acted {
        publish_by(plan(), create, patch).await
    }

    async fn publish_by(step: Step, create: Answer, patch: Option<Answer>) -> Acted {
        let keys_path = format!("/api/v1/namespaces/clusters/secrets/{}", seen(&[]).identity.keys());
        act(&seen(&[]), step, async move |mut mock: Mock| {
            mock.expect("GET", &keys_path, Answer::ok(keys())).await;
            let sent = mock.expect("POST", PUBLISHED, create).await;
            assert_eq!((sent["metadata"]["name"].as_str(), sent["metadata"]["ownerReferences"][0]["uid"].as_str()), (Some("crane-kubeconfig"), Some(UID)));
            if let Some(patch) = patch {
                let sent = mock.expect("PATCH", &format!("{PUBLISHED}/crane-kubeconfig"), patch).await;
                assert_eq!(sent[0], json!({"op": "test", "path": "/metadata/labels/nestling.dev~1cluster-uid", "value": UID}), "the test comes first");
                let paths: Vec<&str> = sent.as_array().unwrap().iter().map(|operation| operation["path"].as_str().unwrap()).collect();
                assert!(paths.contains(&"/data") && paths.contains(&"/metadata/ownerReferences"), "{paths:?}");
                assert!(paths.contains(&"/metadata/labels/cluster.x-k8s.io~1cluster-name"), "{paths:?}");
                assert!(!paths.contains(&"/type") && !paths.contains(&"/metadata/labels"), "{paths:?}");
            }
            mock.done().await;
        })
        .await
    }

    fn exists() -> Answer {
        Answer::refused(409, "AlreadyExists", "secrets \"crane-kubeconfig\" already exists")
    }

    fn written() -> Answer {
        Answer::ok(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "crane-kubeconfig", "uid": "s"}}))
    }

    #[tokio::test]
    async fn a_kubeconfig_is_published_or_written_anew() {
        for (create, patch) in [(written(), None), (exists(), Some(written()))] {
            let acted = publish(create, patch).await;
            assert_eq!(acted.outcome.done.len(), 1);
            let days = acted.outcome.credentials_end["crane-kubeconfig"].duration_since(Timestamp::now()).as_hours() / 24;
            assert!((364..=365).contains(&days), "{days}");
        }
    }

    #[tokio::test]
    async fn further_credentials_that_are_refused_are_said_and_hold_nothing_up() {
        let step = || Step::PublishFurther(Box::new(kubeconfig_plan(Bearer::User { name: "ci".into(), groups: vec![] })));
        let forbidden = Answer::refused(403, "Forbidden", "secrets is forbidden");
        for (create, patch, reason) in
            [(exists(), Some(Answer::failed_test()), Reason::KubeconfigSecretConflict), (forbidden, None, Reason::KubeconfigWriteFailed)]
        {
            let acted = publish_by(step(), create, patch).await;
            assert_eq!((acted.outcome.done.len(), acted.outcome.failed.is_none()), (1, true));
            assert_eq!(acted.outcome.refused["crane-kubeconfig"].reason, reason);
            assert!(acted.outcome.credentials_end.is_empty());
        }
        let acted = publish_by(step(), Answer::refused(503, "ServiceUnavailable", "later"), None).await;
        assert_eq!(acted.outcome.failed.unwrap().1.reason, Reason::HostUnavailable, "what may be over soon is tried again");
        let acted = publish_by(step(), written(), None).await;
        assert!(acted.outcome.credentials_end.contains_key("crane-kubeconfig") && acted.outcome.refused.is_empty());
    }

    #[tokio::test]
    async fn anothers_secret_survives() {
        let acted = publish(exists(), Some(Answer::failed_test())).await;
        let (step, problem) = acted.outcome.failed.unwrap();
        assert_eq!((step.name(), problem.reason), ("PublishKubeconfig", Reason::KubeconfigSecretConflict));
        assert!(acted.outcome.credentials_end.is_empty());
    }

    #[tokio::test]
    async fn a_secret_that_comes_and_goes_is_no_problem() {
        let acted = publish(exists(), Some(Answer::missing())).await;
        assert_eq!((acted.cut_short, acted.outcome.failed.is_none()), (Some(CutShort::Stale), true));
    }

    #[tokio::test]
    async fn what_the_users_namespace_refuses_is_said() {
        let acted = publish(Answer::refused(403, "Forbidden", "secrets is forbidden"), None).await;
        assert_eq!(acted.outcome.failed.unwrap().1.reason, Reason::KubeconfigWriteFailed);
        let acted = publish(
            Answer::refused(403, "Forbidden", "secrets \"s\" is forbidden: unable to create new content in namespace marsh because it is being terminated"),
            None,
        )
        .await;
        assert_eq!((acted.cut_short, acted.outcome.failed.is_none()), (Some(CutShort::NamespaceTerminating), true));
    }

    #[tokio::test]
    async fn orders_need_a_lease_as_writes_do() {
        let (client, mock) = Mock::new();
        let actor = Actor { fence: Fence::new(Instant::now(), Duration::ZERO), ..actor(client) };
        let mut seen = seen(&[]);
        let pod = json!({"metadata": {"name": "p", "uid": "a", "labels": {"nestling.dev/attempt": "1"}}, "status": {"podIP": "192.0.2.1"}});
        seen.children.pods = vec![serde_json::from_value(pod).unwrap()];
        let acted = actor.act(&seen, vec![Step::Order(Orders::default())], None).await;
        let (_, problem) = acted.outcome.failed.unwrap();
        assert!(problem.message.contains("the lease"), "{}", problem.message);
        mock.done().await;
    }

    /// Writes logs down that an agent has handed over.
    async fn keep(create: Answer, patch: Option<Answer>) -> Acted {
        let (logs, mut keys) = crate::operator::logs::tests::store(|_| "archive".into()).await;
        let pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "a", "labels": {"nestling.dev/attempt": "3"}}})).unwrap();
        let seen = seen(&[]);
        let key = Key { namespace: "marsh".into(), name: "crane".into() };
        logs.tend(&key, &seen.identity, Some(&pod), true);
        tokio::time::timeout(Duration::from_secs(20), futures::StreamExt::next(&mut keys)).await.unwrap();
        let (client, mut mock) = Mock::new();
        let server = tokio::spawn(async move {
            let sent = mock.expect("POST", PUBLISHED, create).await;
            assert_eq!((&sent["metadata"]["name"], &sent["data"]["logs.tar.gz"]), (&json!("crane-logs"), &json!("YXJjaGl2ZQ==")));
            if let Some(patch) = patch {
                let sent = mock.expect("PATCH", &format!("{PUBLISHED}/crane-logs"), patch).await;
                assert_eq!(sent[0], json!({"op": "test", "path": "/metadata/labels/nestling.dev~1cluster-uid", "value": UID}));
            }
            mock.done().await;
        });
        let actor = Actor { logs, ..actor(client) };
        let plan = LogsPlan { identity: seen.identity.clone(), secret: "crane-logs".into(), attempt: 3, install: "reed".into() };
        let acted = Box::pin(actor.act(&seen, vec![Step::KeepLogs(Box::new(plan))], None)).await;
        server.await.unwrap();
        acted
    }

    #[tokio::test]
    async fn logs_are_kept_in_our_own_secret_only() {
        for (create, patch) in [(written(), None), (exists(), Some(written()))] {
            let acted = keep(create, patch).await;
            assert_eq!((acted.outcome.done.len(), acted.outcome.logs_refused), (1, None));
        }
        let acted = keep(exists(), Some(Answer::failed_test())).await;
        assert!(acted.outcome.logs_refused.unwrap().message.contains("is not this cluster's"));
        assert_eq!(acted.outcome.done.len(), 1, "the pod goes all the same");
        let acted = keep(Answer::refused(403, "Forbidden", "secrets is forbidden: exceeded quota: q"), None).await;
        assert_eq!(acted.outcome.logs_refused.unwrap().reason, Reason::QuotaExceeded);
        let acted = keep(Answer::refused(500, "InternalError", "later"), None).await;
        assert_eq!(acted.outcome.failed.unwrap().0.name(), "KeepLogs", "it is tried again");
    }

    #[tokio::test]
    async fn logs_that_are_not_here_any_more_are_asked_for_again() {
        let plan = LogsPlan { identity: seen(&[]).identity, secret: "crane-logs".into(), attempt: 3, install: "reed".into() };
        let acted = act(&seen(&[]), Step::KeepLogs(Box::new(plan)), async |mock: Mock| mock.done().await).await;
        assert_eq!(acted.cut_short, Some(CutShort::Stale));
    }

    #[tokio::test]
    async fn only_our_own_kubeconfig_is_taken_away() {
        let path = format!("{PUBLISHED}/crane-kubeconfig");
        let step = || Step::RetractKubeconfig { secret: "crane-kubeconfig".into() };
        let (patched, deleted) = (path.clone(), path.clone());
        let acted = act(&seen(&[]), step(), async move |mut mock: Mock| {
            let sent = mock.expect("PATCH", &patched, written()).await;
            assert_eq!(sent, json!([{"op": "test", "path": "/metadata/labels/nestling.dev~1cluster-uid", "value": UID}]));
            let sent = mock.expect("DELETE", &deleted, Answer::ok(json!({"kind": "Status", "status": "Success"}))).await;
            assert_eq!(sent["preconditions"], json!({"uid": "s"}));
            mock.done().await;
        })
        .await;
        assert_eq!(acted.outcome.done.len(), 1);
        for answer in [Answer::missing(), Answer::failed_test()] {
            let path = path.clone();
            let acted = act(&seen(&[]), step(), async move |mut mock: Mock| {
                mock.expect("PATCH", &path, answer).await;
                mock.done().await;
            })
            .await;
            assert_eq!(acted.outcome.done.len(), 1, "there is nothing of ours to take away");
        }
    }

    #[tokio::test]
    async fn an_expired_object_is_deleted_only_as_it_was_read() {
        let changed = Answer::refused(409, "Conflict", "the ResourceVersion in the precondition");
        let gone = || Answer::ok(json!({"kind": "Status", "status": "Success"}));
        let expected =
            [(answer_cluster("8"), None), (changed, Some(CutShort::Stale)), (Answer::missing(), Some(CutShort::Gone)), (gone(), Some(CutShort::Gone))];
        for (answer, cut_short) in expected {
            let acted = act(&seen(&["nestling.dev/cluster"]), Step::Expire, async move |mut mock: Mock| {
                let sent = mock.expect("DELETE", CLUSTER, answer).await;
                assert_eq!(sent["preconditions"], json!({"uid": UID, "resourceVersion": "7"}));
                mock.done().await;
            })
            .await;
            assert_eq!(acted.cut_short, cut_short);
            assert_eq!(acted.cluster.and_then(|cluster| cluster.resource_version()).as_deref(), cut_short.is_none().then_some("8"));
        }
    }

    #[tokio::test]
    async fn children_are_deleted_by_uid() {
        for answer in [Answer::ok(json!({"metadata": {"name": "p"}})), Answer::missing(), Answer::refused(409, "Conflict", "the UID in the precondition")] {
            let child = Child { kind: ChildKind::Pod, name: "p".into(), uid: "u".into() };
            let acted = act(&seen(&[]), Step::Delete(child), async move |mut mock: Mock| {
                let sent = mock.expect("DELETE", "/api/v1/namespaces/clusters/pods/p", answer).await;
                assert_eq!(sent["preconditions"], json!({"uid": "u"}));
                mock.done().await;
            })
            .await;
            assert_eq!(acted.outcome.done.len(), 1);
        }
    }

    fn pod() -> Step {
        Step::CreatePod(Box::new(Pod { metadata: ObjectMeta { name: Some("p".into()), ..ObjectMeta::default() }, ..Pod::default() }))
    }

    #[tokio::test]
    async fn the_created_pod_is_what_was_done() {
        let acted = act(&seen(&[]), pod(), async |mut mock: Mock| {
            mock.expect("POST", "/api/v1/namespaces/clusters/pods", Answer::ok(json!({"metadata": {"name": "p", "uid": "new"}}))).await;
        })
        .await;
        assert!(matches!(&acted.outcome.done[..], [Step::CreatePod(pod)] if pod.metadata.uid.as_deref() == Some("new")));
    }

    #[tokio::test]
    async fn a_pod_that_exists_is_ours_unless_it_is_not() {
        for (uid, stale) in [(UID, true), ("another", false)] {
            let acted = act(&seen(&[]), pod(), async move |mut mock: Mock| {
                mock.expect("POST", "/api/v1/namespaces/clusters/pods", Answer::refused(409, "AlreadyExists", "pods \"p\" already exists")).await;
                let existing = json!({"metadata": {"name": "p", "labels": {"nestling.dev/cluster-uid": uid}}});
                mock.expect("GET", "/api/v1/namespaces/clusters/pods/p", Answer::ok(existing)).await;
            })
            .await;
            assert_eq!(acted.cut_short == Some(CutShort::Stale), stale);
            assert_eq!(acted.outcome.failed.is_some(), !stale);
        }
    }

    #[tokio::test]
    async fn keys_are_made_once() {
        let name = seen(&[]).identity.keys();
        let acted = act(&seen(&[]), Step::CreateKeys, async move |mut mock: Mock| {
            let sent = mock.expect("POST", "/api/v1/namespaces/clusters/secrets", Answer::refused(409, "AlreadyExists", "exists")).await;
            assert_eq!(sent["data"].as_object().unwrap().len(), 12);
            mock.expect("GET", &format!("/api/v1/namespaces/clusters/secrets/{name}"), Answer::ok(keys())).await;
            mock.done().await;
        })
        .await;
        assert_eq!(acted.outcome.done.len(), 1);
    }

    const LOGIN: &str = "/api/v1/namespaces/marsh/secrets/login";

    fn registries_step() -> Step {
        let mut seen = seen(&[]);
        seen.cluster.spec =
            serde_json::from_value(json!({"registries": [{"host": "r.example", "credentialsSecretRef": {"name": "login"}, "caConfigMapRef": {"name": "ca"}}]}))
                .unwrap();
        Step::ApplyRegistries(Box::new(registries::plan(Timestamp::now(), &seen.cluster, &seen.identity, &seen.settings)))
    }

    fn login(type_: &str) -> Answer {
        // heron / top-secret
        Answer::ok(json!({"metadata": {"name": "login"}, "type": type_, "data": {"username": "aGVyb24=", "password": "dG9wLXNlY3JldA=="}}))
    }

    #[tokio::test]
    async fn what_registries_want_to_see_is_copied_beside_the_pod() {
        let name = seen(&[]).identity.registries();
        let acted = act(&seen(&[]), registries_step(), async move |mut mock: Mock| {
            mock.expect("GET", LOGIN, login("kubernetes.io/basic-auth")).await;
            let ca = json!({"metadata": {"name": "ca"}, "data": {"ca.crt": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"}});
            mock.expect("GET", "/api/v1/namespaces/marsh/configmaps/ca", Answer::ok(ca)).await;
            let sent = mock.expect("PATCH", &format!("/api/v1/namespaces/clusters/secrets/{name}"), Answer::ok(json!({"metadata": {"name": name}}))).await;
            assert_eq!(sent["metadata"]["labels"]["nestling.dev/cluster-uid"], UID);
            let keys: Vec<&String> = sent["data"].as_object().unwrap().keys().collect();
            assert_eq!(keys, ["ca-r.example.crt", "config.json"]);
            mock.done().await;
        })
        .await;
        assert_eq!(acted.outcome.done.len(), 1);
        let said = format!("{acted:?}");
        assert!(!said.contains("top-secret") && !said.contains("dG9wLXNlY3JldA"), "{said}");
    }

    #[tokio::test]
    async fn what_may_not_or_cannot_be_used_is_said_and_nothing_is_written() {
        let denied = || Answer::refused(403, "Forbidden", "secrets \"login\" is forbidden: User \"u\" cannot get resource \"secrets\"");
        for (answer, reason) in [
            (denied(), Reason::SecretAccessDenied),
            (Answer::missing(), Reason::SecretNotFound),
            (login("Opaque"), Reason::UnusableDockerConfig),
            (Answer::refused(503, "ServiceUnavailable", "later"), Reason::HostUnavailable),
        ] {
            let acted = act(&seen(&[]), registries_step(), async move |mut mock: Mock| {
                mock.expect("GET", LOGIN, answer).await;
                mock.done().await;
            })
            .await;
            let (step, problem) = acted.outcome.failed.unwrap();
            assert_eq!((step.name(), problem.reason), ("ApplyRegistries", reason));
            assert!(!problem.message.contains("top-secret"), "{problem}");
        }
    }

    #[tokio::test]
    async fn a_held_step_is_not_tried_but_its_problem_stands() {
        let (client, mock) = Mock::new();
        let actor = actor(client);
        let held = Held { step: "CreatePod", generation: 1, problem: Problem::new(Reason::PodSecurity, "no") };
        let acted = actor.act(&seen(&[]), vec![pod()], Some(&held)).await;
        assert!(acted.held && acted.outcome.failed.is_some_and(|(_, problem)| problem == held.problem));
        mock.done().await;
    }

    #[tokio::test]
    async fn the_first_failure_ends_the_plan() {
        let (client, mut mock) = Mock::new();
        let server = tokio::spawn(async move {
            mock.expect("POST", "/api/v1/namespaces/clusters/pods", Answer::refused(403, "Forbidden", "violates PodSecurity \"baseline:latest\"")).await;
            mock.done().await;
        });
        let actor = actor(client);
        let acted = actor.act(&seen(&[]), vec![pod(), Step::CreateKeys], None).await;
        assert_eq!(acted.outcome.failed.unwrap().1.reason, Reason::PodSecurity);
        server.await.unwrap();
    }
}
