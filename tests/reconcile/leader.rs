//! Two operators and one lease: whoever holds it is lost again and again, while clusters come and go.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use nestling_core::api::conditions::{self, READY};
use nestling_core::api::{KindCluster, KindClusterSpec};
use nestling_lab::ControlPlane;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tempfile::NamedTempFile;

use super::support::operator::{OPERATOR_NAMESPACE, Operator, Options};
use super::support::plane::Plane;
use super::support::wait::{describe, until};
use super::support::{record, seed, soak};
use super::writes::{Judged, Verdict, judge};
use super::{Stage, registries};

/// What users are promised: whoever creates a cluster when the leader is lost hears of it within this.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(20);

/// How long a lease keeps others away (`src/operator/lease.rs`).
const LEASE: Duration = Duration::from_secs(15);

/// A leader that hears nothing stops to write after this (`src/operator/lease.rs`).
const GIVES_UP_AFTER: f64 = 10.0;

const CONVERGED_WITHIN: Duration = Duration::from_mins(2);
const NAMES: [&str; 2] = ["operator-a", "operator-b"];
const LEASE_NAME: &str = "nestling";

/// How a leader is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// SIGKILL, and its machine is gone with it for a while.
    Killed,
    /// SIGKILL, and the kubelet starts it anew at once.
    KilledAndBack,
    /// SIGSTOP until its lease is over, and then SIGCONT.
    Stopped,
}

struct Replica {
    kubeconfig: NamedTempFile,
    options: Options,
    process: Option<Operator>,
}

/// Two operators, each a user of its own.
struct Pair<'a> {
    stage: &'a Stage,
    replicas: Vec<Replica>,
    leases: Api<Lease>,
}

impl<'a> Pair<'a> {
    fn start(stage: &'a Stage) -> Self {
        let replica = |name: &'static str| {
            let mut kubeconfig = NamedTempFile::new().unwrap();
            kubeconfig.write_all(stage.plane.control_plane.kubeconfig_for(name, Some("system:masters")).unwrap().as_bytes()).unwrap();
            let options = Options { kubeconfig: Some(kubeconfig.path().to_owned()), identity: name, ..stage.options(None) };
            Replica { kubeconfig, options, process: None }
        };
        let leases = Api::namespaced(stage.plane.client.clone(), OPERATOR_NAMESPACE);
        let mut pair = Self { stage, replicas: NAMES.map(replica).into(), leases };
        pair.restart();
        pair
    }

    /// Starts whichever is not there, as the kubelet does.
    fn restart(&mut self) {
        for replica in &mut self.replicas {
            assert!(replica.kubeconfig.path().exists());
            if replica.process.as_mut().is_none_or(Operator::has_ended) {
                replica.process = Some(Operator::start(&self.stage.plane, &replica.options));
            }
        }
    }

    /// The one that leads.
    async fn leader(&mut self) -> usize {
        until("somebody to lead", FOLLOWED_WITHIN, async || {
            let lease = self.leases.get_opt(LEASE_NAME).await.map_err(|error| error.to_string())?;
            let holder = lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default();
            let index = NAMES.iter().position(|name| *name == holder).ok_or(holder)?;
            let lives = self.replicas[index].process.as_mut().is_some_and(|process| !process.has_ended());
            if lives { Ok(index) } else { Err(format!("{} has ended", NAMES[index])) }
        })
        .await
    }

    /// Takes the leader away, and waits until somebody goes on. Answers after how many seconds.
    async fn lose(&mut self, number: usize, loss: Loss, random: &mut StdRng) -> f64 {
        let leader = self.leader().await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..4000))).await;
        let process = self.replicas[leader].process.as_mut().unwrap();
        match loss {
            Loss::Killed | Loss::KilledAndBack => process.kill(),
            Loss::Stopped => process.signal(Signal::SIGSTOP),
        }
        let begun = Instant::now();
        if matches!(loss, Loss::KilledAndBack) {
            self.restart();
        }
        let probe = format!("probe-{number}");
        self.stage.create(&probe, json!({})).await;
        until("somebody to go on", FOLLOWED_WITHIN, async || {
            let cluster = self.stage.clusters.get(&probe).await.map_err(|error| error.to_string())?;
            if cluster.status.is_some() { Ok(()) } else { Err("nobody has said a word on a new cluster".to_owned()) }
        })
        .await;
        let seconds = begun.elapsed().as_secs_f64();
        println!("loss {number}: {} {loss:?}; somebody went on after {seconds:.1} s", NAMES[leader]);
        if matches!(loss, Loss::Stopped) {
            let over = LEASE + Duration::from_millis(random.random_range(0..3000));
            tokio::time::sleep(over.saturating_sub(begun.elapsed())).await;
            let process = self.replicas[leader].process.as_mut().unwrap();
            process.signal(Signal::SIGCONT);
            assert!(process.ended(Duration::from_secs(10)).await, "a leader that has slept through its lease goes on as if it held it");
        }
        self.restart();
        seconds
    }
}

/// Clusters come and go, some before they are ready, until `stop` says so; the names of those that are left.
async fn churn(clusters: Api<KindCluster>, mut random: StdRng, stop: tokio::sync::watch::Receiver<bool>) -> Vec<String> {
    let mut alive: Vec<String> = Vec::new();
    for index in 0.. {
        if *stop.borrow() {
            break;
        }
        if alive.len() > random.random_range(0..4) {
            let name = alive.remove(random.random_range(0..alive.len()));
            clusters.delete(&name, &DeleteParams::default()).await.unwrap();
        } else {
            let name = format!("churn-{index}");
            let spec = if random.random_bool(0.5) { json!({}) } else { json!({"registries": registries("login"), "storage": {"type": "Persistent"}}) };
            let spec: KindClusterSpec = serde_json::from_value(spec).unwrap();
            clusters.create(&PostParams::default(), &KindCluster::new(&name, spec)).await.unwrap();
            alive.push(name);
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(50..1500))).await;
    }
    alive
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_leader_is_followed_and_writes_no_more() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    println!("seed {seed}");
    let stage = Stage::set_on(Plane::start_with(ControlPlane::options().with_audit(true)).await).await;
    let mut pair = Pair::start(&stage);
    pair.leader().await;
    let (end, stop) = tokio::sync::watch::channel(false);
    let churning = tokio::spawn(churn(stage.clusters.clone(), StdRng::seed_from_u64(random.random()), stop));
    let losses = if soak() { 20 } else { 3 };
    let mut followed = Vec::new();
    for number in 0..losses {
        let any = [Loss::Killed, Loss::KilledAndBack, Loss::Stopped];
        let loss = if number == 0 { Loss::Stopped } else { any[random.random_range(0..any.len())] };
        followed.push(pair.lose(number, loss, &mut random).await);
    }
    end.send(true).unwrap();
    let alive = churning.await.unwrap();

    // All converge: who is there becomes ready with its first pod, who is not leaves nothing.
    until("all to be ready, or gone", CONVERGED_WITHIN, async || {
        let all = stage.clusters.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let ready = |cluster: &KindCluster| cluster.status.as_ref().is_some_and(|status| conditions::is_true(&status.conditions, READY));
        let unready: Vec<String> = all
            .iter()
            .filter(|cluster| cluster.metadata.deletion_timestamp.is_some() || !ready(cluster))
            .map(|cluster| cluster.name_any() + &describe(cluster))
            .collect();
        if unready.is_empty() && all.items.len() == alive.len() + losses { Ok(()) } else { Err(unready.join("\n")) }
    })
    .await;
    for cluster in stage.clusters.list(&ListParams::default()).await.unwrap() {
        assert_eq!(cluster.status.as_ref().unwrap().attempt, Some(1), "{}", describe(&cluster));
        stage.clusters.delete(&cluster.name_any(), &DeleteParams::default()).await.unwrap();
    }
    until("all to be gone", CONVERGED_WITHIN, async || {
        let left = (stage.clusters.list(&ListParams::default()).await.unwrap().items.len(), stage.children().await);
        if left == (0, vec![]) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    let twice: Vec<_> = stage.host.started.lock().unwrap().clone().into_iter().filter(|(_, pods)| *pods != 1).collect();
    assert!(twice.is_empty(), "pods were duplicated: {twice:?}");
    drop(pair);

    let judged = judge(&stage.plane.control_plane.audit().unwrap(), &NAMES, LEASE_NAME);
    let mut counts: BTreeMap<Verdict, usize> = BTreeMap::new();
    for Judged { verdict, .. } in &judged {
        *counts.entry(*verdict).or_default() += 1;
    }
    let oldest = judged.iter().filter_map(|judged| judged.lease_age).fold(0.0, f64::max);
    println!("{losses} losses, {} writes: {counts:?}; the oldest lease that was written on was {oldest:.1} s old", judged.len());
    followed.sort_by(f64::total_cmp);
    let count = |verdict: Verdict| counts.get(&verdict).copied().unwrap_or_default();
    let found = json!({"losses": losses, "median": followed[losses / 2], "longest": followed[losses - 1], "writes": judged.len(),
        "ByTheHolder": count(Verdict::ByTheHolder), "Refused": count(Verdict::Refused), "WithoutEffect": count(Verdict::WithoutEffect),
        "Astray": count(Verdict::Astray)});
    record("leader", &found);
    let of = |wanted: Verdict| judged.iter().filter(|judged| judged.verdict == wanted).map(|judged| judged.text.as_str()).collect::<Vec<_>>();
    assert_eq!(of(Verdict::Astray), Vec::<&str>::new(), "writes of one that did not hold the lease");
    assert!(count(Verdict::ByTheHolder) > 50 * losses, "the log shows too little to prove anything: {counts:?}");
    assert!(oldest < GIVES_UP_AFTER + 1.0, "a write was sent {oldest:.1} s after the lease was renewed");
}
