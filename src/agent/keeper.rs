//! Keeps the containers of a cluster running. One that dies is started again at its old address, at once the first time and ever more slowly while it does not
//! last. Docker tells of deaths as they happen; nothing is polled often.
//!
//! This goes on while the cluster is served. Whoever stops or freezes containers on purpose ends it first.
//!
//! An address that changed would be repaired by kind's entrypoint in the node itself, but not in what others know of it, such as the members of etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use nestling_core::api::reasons::Reason;
use nestling_core::plan::wire::{AgentFailure, DeadContainer};
use tokio::time::{Instant, sleep, timeout};

use super::docker::{Container, Docker};
use super::failure::evident;
use super::nodes;
use super::report::Report;

/// Pause before the second start in a row; doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// Pause between starts after [`BOUND`].
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// Starts in a row that did not last, after which a cluster whose API server does not answer is given up.
const BOUND: u32 = 6;

/// How long a container has to run for its start to have lasted.
const LASTING: Duration = Duration::from_mins(2);

/// How long a death is reported at least, also if the container runs again at once: longer than the kubelet's look at the pod takes, which wakes the operator.
const TOLD_FOR: Duration = Duration::from_secs(15);

/// Look at all containers without a cause, against an event that was missed.
const REGULAR: Duration = Duration::from_mins(1);

/// Pause before Docker is asked again for its events.
const RECONNECT: Duration = Duration::from_secs(1);

/// Lines of a dead container's log that are kept as evidence.
const EVIDENCE: u32 = 60;

/// Time for reading them.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// What is known of a container that has died.
#[derive(Clone, Copy, Debug)]
struct Past {
    exit_code: i64,
    /// Starts in a row that did not last.
    starts: u32,
    /// The last one.
    started: Option<Instant>,
    /// When it was seen dead last.
    died: Instant,
}

/// What follows for a container.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    /// It is started now.
    Start,
    /// It is looked at again after this time.
    Wait(Duration),
    /// It has died too often, and the cluster does not answer.
    GiveUp,
    /// Its death is history.
    Forget,
}

/// Decides about a container that has died before.
fn next(past: &Past, runs: bool, answers: bool, now: Instant) -> Next {
    let since = |time: Instant| now.saturating_duration_since(time);
    if runs {
        let ran = past.started.map_or(LASTING, since);
        return if ran >= LASTING { Next::Forget } else { Next::Wait(wait_for_report(past, now).unwrap_or(LASTING.saturating_sub(ran))) };
    }
    if past.starts >= BOUND && !answers {
        return Next::GiveUp;
    }
    let pause = match past.starts {
        0 => Duration::ZERO,
        starts if starts >= BOUND => LONGEST_PAUSE,
        starts => FIRST_PAUSE * 2_u32.pow(starts - 1),
    };
    match pause.checked_sub(since(past.died)).filter(|left| !left.is_zero()) {
        Some(left) => Next::Wait(left),
        None => Next::Start,
    }
}

/// How long a container that runs again is still reported as dead; `None` if it is not.
fn wait_for_report(past: &Past, now: Instant) -> Option<Duration> {
    TOLD_FOR.checked_sub(now.saturating_duration_since(past.started.unwrap_or(past.died))).filter(|left| !left.is_zero())
}

/// Keeps all containers of a cluster running, until one cannot be kept and the cluster does not answer any more.
///
/// `known`: the addresses of those that are dead from the beginning.
pub async fn keep(docker: &Docker, cluster: &str, known: BTreeMap<String, Ipv4Addr>, report: &Report) -> AgentFailure {
    let mut keeper = Keeper { docker, cluster, report, known, taken_over: BTreeSet::new(), pasts: BTreeMap::new() };
    loop {
        // Docker tells again what happened from here on, however long it takes to connect.
        let mut deaths = std::pin::pin!(docker.deaths(cluster, jiff::Timestamp::now().as_second()));
        loop {
            let pause = match keeper.look().await {
                Ok(pause) => pause,
                Err(failure) => return failure,
            };
            tokio::select! {
                death = deaths.next() => if !matches!(death, Some(Ok(()))) { break },
                () = sleep(pause) => {}
            }
        }
        sleep(RECONNECT).await;
    }
}

struct Keeper<'a> {
    docker: &'a Docker,
    cluster: &'a str,
    report: &'a Report,
    /// The addresses that containers had while they ran.
    known: BTreeMap<String, Ipv4Addr>,
    /// Those that Docker does not start any more.
    taken_over: BTreeSet<String>,
    /// Those that have died.
    pasts: BTreeMap<String, Past>,
}

impl Keeper<'_> {
    /// Looks at every container and does what follows; the time until the next look.
    async fn look(&mut self) -> Result<Duration, AgentFailure> {
        // A daemon that does not answer is watched by others.
        let Ok(mut containers) = self.docker.containers(self.cluster).await else { return Ok(RECONNECT) };
        self.pasts.retain(|name, _| containers.iter().any(|container| container.name == *name));
        self.take_over(containers.iter().filter(|container| container.running)).await;
        containers.sort_by_key(|container| rank(&container.role));
        let mut pause = REGULAR;
        for container in containers {
            if let Some(wait) = self.tend(&container).await? {
                pause = pause.min(wait);
            }
        }
        self.tell(Instant::now());
        Ok(pause)
    }

    /// Learns the addresses of containers that run, and makes sure that nobody else starts them.
    async fn take_over(&mut self, running: impl Iterator<Item = &Container>) {
        let new: Vec<&Container> = running.filter(|container| !self.taken_over.contains(&container.name)).collect();
        let found = join_all(new.iter().map(async |container| {
            if let Err(error) = self.docker.leave_starts_to_us(&container.name).await {
                tracing::warn!(name = container.name, "Docker may still start it by itself: {error}");
            }
            self.docker.address(&container.name).await
        }));
        for (container, address) in new.iter().zip(found.await) {
            self.taken_over.insert(container.name.clone());
            self.known.extend(address.map(|address| (container.name.clone(), address)));
        }
    }

    /// Does what follows for one container; when to look again, if there is a reason to.
    async fn tend(&mut self, container: &Container) -> Result<Option<Duration>, AgentFailure> {
        let now = Instant::now();
        let name = &container.name;
        if !container.running && self.pasts.get(name).is_none_or(|past| past.started.is_some_and(|started| started > past.died)) {
            let exit_code = self.docker.exit_code(name).await;
            let lasted = self.pasts.get(name).and_then(|past| past.started).is_none_or(|started| now.saturating_duration_since(started) >= LASTING);
            let starts = if lasted { 0 } else { self.pasts.get(name).map_or(0, |past| past.starts) };
            tracing::warn!(name, exit_code, starts, "a container of the cluster has died");
            self.pasts.insert(name.clone(), Past { exit_code, starts, started: None, died: now });
            // Told before it is started: what follows takes a moment.
            self.tell(now);
        }
        let Some(past) = self.pasts.get_mut(name) else { return Ok(None) };
        let answers = self.report.subscribe().borrow().control_plane_ready;
        match next(past, container.running, answers, now) {
            Next::Forget => {
                self.pasts.remove(name);
                Ok(None)
            }
            Next::Wait(wait) => Ok(Some(wait)),
            Next::Start => {
                past.starts += 1;
                match nodes::start_again(self.docker, name, self.known.get(name).copied()).await {
                    Ok(()) => past.started = Some(Instant::now()),
                    Err(error) => {
                        tracing::warn!(name, "it cannot be started: {error}");
                        past.died = Instant::now();
                    }
                }
                Ok(Some(TOLD_FOR.min(FIRST_PAUSE)))
            }
            Next::GiveUp => {
                let message = format!(
                    "{name} has ended {} times in a row, the last time with exit code {}, and the API server does not answer",
                    past.starts + 1,
                    past.exit_code
                );
                let log = timeout(LOOK_LIMIT, self.docker.logs(name, EVIDENCE)).await.ok().and_then(Result::ok).unwrap_or_default();
                Err(evident(Reason::NodeContainerDead, message, &log))
            }
        }
    }

    /// Reports what is dead, or was until a moment ago.
    fn tell(&self, now: Instant) {
        let told = self.pasts.iter().filter(|(_, past)| past.started.is_none() || wait_for_report(past, now).is_some());
        let dead = told.map(|(name, past)| DeadContainer { name: name.clone(), exit_code: past.exit_code, starts: past.starts }).collect();
        self.report.update(|report| report.dead_containers = dead);
    }
}

/// Control planes first, then what looks for them.
fn rank(role: &str) -> u8 {
    match role {
        nodes::CONTROL_PLANE => 0,
        nodes::LOAD_BALANCER => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// `ago`: seconds since it was started last, `None` if it is dead; it died 100 seconds ago, or `died`.
    fn past(starts: u32, started: Option<u64>, died: u64) -> (Past, Instant) {
        let now = Instant::now() + Duration::from_hours(1);
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap();
        (Past { exit_code: 137, starts, started: started.map(ago), died: ago(died) }, now)
    }

    #[rstest]
    #[case::at_once((0, 0), true, Next::Start)]
    #[case::also_if_nobody_answers((0, 0), false, Next::Start)]
    #[case::then_more_slowly((1, 0), true, Next::Wait(Duration::from_secs(2)))]
    #[case::half_way((1, 1), true, Next::Wait(Duration::from_secs(1)))]
    #[case::and_again((1, 2), true, Next::Start)]
    #[case::ever_more_slowly((5, 0), false, Next::Wait(Duration::from_secs(32)))]
    #[case::last_time((5, 32), false, Next::Start)]
    #[case::given_up((BOUND, 0), false, Next::GiveUp)]
    #[case::not_while_the_cluster_answers((BOUND, 0), true, Next::Wait(LONGEST_PAUSE))]
    #[case::for_ever((BOUND + 90, 300), true, Next::Start)]
    fn a_dead_container_is_started(#[case] (starts, died): (u32, u64), #[case] answers: bool, #[case] expected: Next) {
        let (past, now) = past(starts, None, died);
        assert_eq!(next(&past, false, answers, now), expected);
    }

    #[rstest]
    #[case::told(5, Next::Wait(Duration::from_secs(10)))]
    #[case::watched(20, Next::Wait(Duration::from_secs(100)))]
    #[case::history(120, Next::Forget)]
    fn a_container_that_runs_again_is_watched_for_a_while(#[case] started: u64, #[case] expected: Next) {
        let (past, now) = past(3, Some(started), 200);
        assert_eq!(next(&past, true, false, now), expected);
        assert_eq!(wait_for_report(&past, now).is_some(), started < 15);
    }

    #[test]
    fn control_planes_come_first() {
        let mut roles = ["worker", "external-load-balancer", "control-plane"];
        roles.sort_by_key(|role| rank(role));
        assert_eq!(roles, ["control-plane", "external-load-balancer", "worker"]);
    }
}
