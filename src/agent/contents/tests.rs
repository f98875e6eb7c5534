use super::*;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use nestling_core::api::{DeploymentReference, Readiness};
use nestling_core::plan::wire::{AgentReport, Edition};
use rstest::rstest;

use crate::agent::report::tests::settings;

/// A cluster that accepts an object once what it needs is there, and notes in which order.
#[derive(Default)]
struct Fake {
    record: Mutex<Record>,
    applied: Mutex<Vec<String>>,
    kinds: Mutex<BTreeSet<String>>,
    refuses: Mutex<BTreeSet<String>>,
    looks: AtomicUsize,
}

impl Fake {
    fn applied(&self) -> Vec<String> {
        std::mem::take(&mut *self.applied.lock().unwrap())
    }
}

impl Cluster for Fake {
    async fn record(&self) -> Result<Record, String> {
        Ok(self.record.lock().unwrap().clone())
    }

    async fn note(&self, record: &Record) -> Result<(), String> {
        self.record.lock().unwrap().clone_from(record);
        Ok(())
    }

    async fn apply(&self, object: &Value, _quiet: bool) -> Result<(), String> {
        let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        if self.refuses.lock().unwrap().contains(name) {
            return Err(format!("{name} is refused\nwith a second line"));
        }
        if kind == "Heron" && !self.kinds.lock().unwrap().contains("Heron") {
            return Err("no such kind".to_owned());
        }
        if kind == "CustomResourceDefinition" {
            self.kinds.lock().unwrap().insert("Heron".to_owned());
        }
        self.applied.lock().unwrap().push(name.to_owned());
        Ok(())
    }

    async fn look(&self, gate: &Gate) -> Result<(), String> {
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        if *gate == Gate::Dns || looks > 5 { Ok(()) } else { Err("not yet".to_owned()) }
    }
}

fn object(kind: &str, name: &str) -> String {
    format!("{{apiVersion: v1, kind: {kind}, metadata: {{name: {name}}}}}\n---\n")
}

fn contents(manifests: &[(&str, String)]) -> Contents {
    let manifest = |(name, text): &(&str, String)| ManifestText { name: (*name).to_owned(), text: text.clone(), secret: false };
    Contents { edition: Edition { list: "1".into(), read_at: None }, manifests: manifests.iter().map(manifest).collect(), ..Contents::default() }
}

fn store() -> Store {
    Store::new(Report::new(&settings()))
}

fn said(store: &Store) -> Vec<(ManifestState, String)> {
    let report: AgentReport = store.report.subscribe().borrow().clone();
    report.contents.unwrap().manifests.into_iter().map(|manifest| (manifest.state, manifest.message)).collect()
}

/// Lets the agent work for so long.
async fn work(store: &Store, cluster: &Fake, seconds: u64) {
    tokio::select! {
        never = store.follow(cluster) => match never {},
        () = sleep(Duration::from_secs(seconds)) => {}
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_there_is_not_applied_again_but_what_differs_is() {
    let (store, cluster) = (store(), Fake::default());
    let (a, b) = (("a", object("ConfigMap", "w") + &object("ConfigMap", "x")), ("b", object("Service", "z")));
    store.take(contents(&[a.clone(), b.clone()]));
    assert_eq!(said(&store), [(ManifestState::Applying, String::new()), (ManifestState::Applying, String::new())]);
    work(&store, &cluster, 5).await;
    assert_eq!(cluster.applied(), ["w", "x", "z"]);
    let applied = [(ManifestState::Applied, String::new()), (ManifestState::Applied, String::new())];
    assert_eq!(said(&store), applied);
    // The same again is known before anybody asks the cluster,
    store.take(contents(&[a.clone(), b.clone()]));
    assert_eq!(said(&store), applied);
    work(&store, &cluster, 5).await;
    // and to an agent that begins anew when it has asked.
    let store = self::store();
    store.take(contents(&[a.clone(), b]));
    work(&store, &cluster, 5).await;
    assert_eq!((cluster.applied(), said(&store)), (vec![], applied.to_vec()));
    let changed = ("b", object("Service", "other"));
    store.take(contents(&[a.clone(), changed.clone()]));
    assert_eq!(said(&store), [applied[0].clone(), (ManifestState::Applying, String::new())]);
    work(&store, &cluster, 5).await;
    assert_eq!(cluster.applied(), ["other"]);
    // What left the list is forgotten, so that it is applied when it comes back.
    store.take(contents(std::slice::from_ref(&a)));
    work(&store, &cluster, 5).await;
    store.take(contents(&[a.clone(), changed]));
    work(&store, &cluster, 5).await;
    assert_eq!(cluster.applied(), ["other"]);
    // On request, and in a cluster that is new, all of it.
    store.take(Contents { reapply: "monday".into(), ..contents(std::slice::from_ref(&a)) });
    work(&store, &cluster, 5).await;
    assert_eq!(cluster.applied(), ["w", "x"]);
    let new = Fake::default();
    work(&store, &new, 5).await;
    assert_eq!(new.applied(), ["w", "x"]);
}

#[tokio::test(start_paused = true)]
async fn an_object_waits_for_its_kind_also_in_a_later_manifest() {
    let (store, cluster) = (store(), Fake::default());
    store.take(contents(&[("herons", object("Heron", "grey") + &object("ConfigMap", "x")), ("kinds", object("CustomResourceDefinition", "herons"))]));
    work(&store, &cluster, 10).await;
    // What was accepted is not sent again.
    assert_eq!(cluster.applied(), ["x", "herons", "grey"]);
    assert!(said(&store).iter().all(|(state, _)| *state == ManifestState::Applied));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_told_at_once_tried_for_ten_minutes_and_then_left() {
    let (store, cluster) = (store(), Fake::default());
    cluster.refuses.lock().unwrap().extend(["bad".to_owned(), "worse".to_owned()]);
    store.take(contents(&[("a", object("ConfigMap", "bad") + &object("ConfigMap", "worse") + &object("ConfigMap", "good")), ("b", object("ConfigMap", "x"))]));
    work(&store, &cluster, 1).await;
    let message = "ConfigMap bad: bad is refused".to_owned();
    assert_eq!(said(&store)[0], (ManifestState::Applying, message.clone()));
    assert_eq!(said(&store)[1].0, ManifestState::Applied);
    assert_eq!(cluster.applied(), ["good", "x"]);
    work(&store, &cluster, PATIENCE.as_secs() + 30).await;
    assert_eq!(said(&store)[0], (ManifestState::Failed, message));
    cluster.refuses.lock().unwrap().clear();
    cluster.applied();
    // Who comes back later tries again, if he is told to.
    store.take(contents(&[("a", object("ConfigMap", "bad"))]));
    assert_eq!(said(&store)[0].0, ManifestState::Applying);
    work(&store, &cluster, 5).await;
    assert_eq!((cluster.applied(), said(&store)[0].0), (vec!["bad".to_owned()], ManifestState::Applied));
}

#[rstest]
#[case("hidden: {", "it cannot be read as YAML")]
#[case("hidden", "it has a part that is no object")]
#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_has_failed_at_once(#[case] text: &str, #[case] expected: &str) {
    let (store, cluster) = (store(), Fake::default());
    store.take(contents(&[("a", text.to_owned())]));
    // Reading is done on a thread of its own, for which time that stands still does not wait.
    for _ in 0..200 {
        work(&store, &cluster, 1).await;
        std::thread::sleep(Duration::from_millis(5));
        if said(&store)[0].0 == ManifestState::Failed {
            break;
        }
    }
    assert_eq!(said(&store)[0].0, ManifestState::Failed);
    assert!(said(&store)[0].1.starts_with(expected) && !said(&store)[0].1.contains("hidden"), "{:?}", said(&store));
}

#[tokio::test(start_paused = true)]
async fn of_a_secret_only_the_number_of_the_object_is_told() {
    let (store, cluster) = (store(), Fake::default());
    cluster.refuses.lock().unwrap().insert("hidden".to_owned());
    let mut given = contents(&[("a", object("ConfigMap", "x") + &object("Secret", "hidden"))]);
    given.manifests[0].secret = true;
    store.take(given);
    work(&store, &cluster, 2).await;
    assert!(said(&store)[0].1.starts_with("object 2: "), "{:?}", said(&store));
}

#[tokio::test(start_paused = true)]
async fn what_has_been_so_once_is_waited_for_no_longer() {
    let (store, cluster) = (store(), Fake::default());
    let deployments = vec![DeploymentReference { namespace: "n".into(), name: "web".into() }];
    let given = Contents { readiness: Readiness { dns: true, deployments }, ..contents(&[]) };
    store.take(given.clone());
    let gates = |store: &Store| store.report.subscribe().borrow().contents.clone().unwrap().gates;
    assert!(gates(&store).iter().all(|gate| !gate.met));
    work(&store, &cluster, 1).await;
    assert_eq!(
        gates(&store).iter().map(|gate| (gate.gate.as_str(), gate.met, gate.message.as_str())).collect::<Vec<_>>(),
        [("dns", true, ""), ("Deployment n/web", false, "not yet")]
    );
    work(&store, &cluster, 120).await;
    assert!(gates(&store).iter().all(|gate| gate.met && gate.message.is_empty()));
    let looks = cluster.looks.load(Ordering::Relaxed);
    store.take(given);
    work(&store, &cluster, 600).await;
    assert_eq!(cluster.looks.load(Ordering::Relaxed), looks);
}
