//! Freezing, stopping and bringing back the nodes, as ordered.
//!
//! The report holds the orders and what has become of them. This file decides what is done when ([`keep`]); how it is done to nodes is [`Hands`], so that
//! the histories which matter can be tried without nodes. While a cluster is suspended nobody probes it and its front door is shut, so that nothing is
//! taken for a failure and nobody waits for an answer.

use std::time::Duration;

use nestling_core::api::PowerState;
use nestling_core::api::reasons::Reason;
use nestling_core::plan::wire::{AgentFailure, AgentReport};
use tokio::time::timeout;

use super::failure::evident;
use super::report::Report;

/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// What is done to the nodes. Each act is bounded in time.
pub trait Hands {
    /// A cluster that is back.
    type Cluster;

    /// Freezes all nodes, which run.
    fn freeze(&self) -> impl Future<Output = Result<(), AgentFailure>>;
    /// Stops all nodes, frozen or not.
    fn stop(&self) -> impl Future<Output = Result<(), AgentFailure>>;
    /// Thaws and starts what does not run, and waits until the API server answers.
    fn bring_back(&self) -> impl Future<Output = Result<Self::Cluster, AgentFailure>>;
}

fn ordered(report: &AgentReport) -> PowerState {
    report.orders.as_ref().map_or(PowerState::Running, |orders| orders.received.power)
}

fn has_failed(report: &AgentReport) -> bool {
    report.orders.as_ref().is_some_and(|orders| orders.failure(Reason::PowerChangeFailed).is_some())
}

/// Waits until a cluster that runs is to be suspended. What has just failed is tried again after a pause.
pub async fn is_due(report: &Report) {
    let mut reader = report.subscribe();
    loop {
        if ordered(&reader.borrow()) == PowerState::Running {
            failed(report, None);
        }
        // The report outlives its readers.
        let Ok(wanted) = reader.wait_for(|report| ordered(report) != PowerState::Running).await.map(|report| ordered(&report)) else {
            return std::future::pending().await;
        };
        if !has_failed(&reader.borrow()) || timeout(RETRY, reader.wait_for(|report| ordered(report) != wanted)).await.is_err() {
            return;
        }
        // Something else is wanted: what failed is of no interest any more.
        failed(report, None);
    }
}

/// Says that the cluster runs and is open.
pub fn runs(report: &Report) {
    report.update(|report| {
        report.control_plane_ready = true;
        let orders = report.orders.get_or_insert_default();
        orders.carried_out.power = PowerState::Running;
        if orders.received.power == PowerState::Running {
            orders.set_failure(Reason::PowerChangeFailed, None);
        }
    });
}

/// Keeps a cluster suspended for as long as that is ordered, and answers with the cluster that is back. What fails is told and tried again: nodes that
/// cannot be suspended are brought back at once, nodes that cannot be brought back after a pause.
pub async fn keep<H: Hands>(hands: &H, report: &Report) -> H::Cluster {
    report.update(|report| {
        report.control_plane_ready = false;
        // Nobody can say otherwise until they are back.
        report.nodes.iter_mut().for_each(|node| node.ready = false);
    });
    let mut reader = report.subscribe();
    // With `Running`, nodes may be in any state.
    let mut actual = PowerState::Running;
    let mut must_come_back = false;
    loop {
        let wanted = ordered(&reader.borrow_and_update());
        let suspended = match wanted {
            // What has stopped cannot be frozen.
            _ if must_come_back || wanted == PowerState::Running || (actual, wanted) == (PowerState::Stopped, PowerState::Frozen) => {
                match hands.bring_back().await {
                    Ok(cluster) => return cluster,
                    Err(failure) => {
                        failed(report, Some(failure));
                        (must_come_back, actual) = (false, PowerState::Running);
                        let _ = timeout(RETRY, reader.wait_for(|report| ordered(report) != wanted)).await;
                        continue;
                    }
                }
            }
            _ if wanted == actual => {
                if reader.wait_for(|report| ordered(report) != wanted).await.is_err() {
                    return std::future::pending().await;
                }
                continue;
            }
            PowerState::Frozen => hands.freeze().await,
            _ => hands.stop().await,
        };
        match suspended {
            Ok(()) => {
                tracing::info!(state = %wanted, "the cluster is suspended");
                actual = wanted;
                report.update_orders(|orders| {
                    orders.carried_out.power = wanted;
                    orders.set_failure(Reason::PowerChangeFailed, None);
                });
            }
            Err(failure) => {
                failed(report, Some(failure));
                must_come_back = true;
            }
        }
    }
}

/// Tells what hinders the orders, whatever it is called where it comes from.
fn failed(report: &Report, failure: Option<AgentFailure>) {
    let failure = failure.map(|failure| {
        tracing::warn!(reason = %failure.reason, message = failure.message, "power change");
        evident(Reason::PowerChangeFailed, failure.message, &failure.log_tail)
    });
    report.update_orders(|orders| orders.set_failure(Reason::PowerChangeFailed, failure));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use nestling_core::plan::wire::Orders;
    use tokio::time::{Instant, sleep};

    use crate::agent::failure::failure;
    use crate::agent::report::tests::settings;

    /// Hands that note what they do; each act takes a second and turns out as `luck` says, well when that is at its end.
    #[derive(Default)]
    struct Noting {
        done: Mutex<Vec<&'static str>>,
        luck: Mutex<VecDeque<bool>>,
    }

    impl Noting {
        async fn act(&self, what: &'static str) -> Result<(), AgentFailure> {
            self.done.lock().unwrap().push(what);
            sleep(Duration::from_secs(1)).await;
            let well = self.luck.lock().unwrap().pop_front().unwrap_or(true);
            if well { Ok(()) } else { Err(failure(Reason::DockerFailed, format!("{what} failed"))) }
        }
    }

    impl Hands for Noting {
        type Cluster = ();

        async fn freeze(&self) -> Result<(), AgentFailure> {
            self.act("freeze").await
        }

        async fn stop(&self) -> Result<(), AgentFailure> {
            self.act("stop").await
        }

        async fn bring_back(&self) -> Result<(), AgentFailure> {
            self.act("bring back").await
        }
    }

    fn order(report: &Report, power: PowerState) {
        report.update_orders(|orders| orders.received = Orders { power, ..Orders::default() });
    }

    /// A cluster that runs and is given these orders, each so many seconds after the one before; what was done to it until it runs at the end.
    async fn history(luck: &[bool], orders: &[(PowerState, u64)]) -> (Vec<&'static str>, Report) {
        let report = Report::new(&settings());
        runs(&report);
        let hands = Noting { luck: Mutex::new(luck.iter().copied().collect()), ..Noting::default() };
        let ordering = async {
            for (power, pause) in orders {
                // Without a pause nobody sees what was ordered before.
                if *pause > 0 {
                    sleep(Duration::from_secs(*pause)).await;
                }
                order(&report, *power);
            }
            // Long enough for every pause.
            sleep(Duration::from_mins(5)).await;
        };
        let working = async {
            loop {
                is_due(&report).await;
                keep(&hands, &report).await;
                runs(&report);
            }
        };
        tokio::select! {
            () = ordering => {}
            () = working => {}
        }
        let done = hands.done.lock().unwrap().clone();
        (done, report)
    }

    /// Orders as in [`history`], what is done, and the state at the end.
    type Row<'a> = (&'a [(PowerState, u64)], &'a [&'a str], PowerState);

    fn state(report: &Report) -> (bool, PowerState, bool) {
        let report = report.subscribe().borrow().clone();
        (report.control_plane_ready, report.orders.as_ref().unwrap().carried_out.power, has_failed(&report))
    }

    #[tokio::test(start_paused = true)]
    async fn orders_are_carried_out() {
        use PowerState::{Frozen, Running, Stopped};
        let table: [Row<'_>; 8] = [
            (&[(Frozen, 0)], &["freeze"], Frozen),
            (&[(Frozen, 0), (Frozen, 5)], &["freeze"], Frozen),
            (&[(Frozen, 0), (Running, 5)], &["freeze", "bring back"], Running),
            (&[(Stopped, 0), (Running, 5)], &["stop", "bring back"], Running),
            (&[(Frozen, 0), (Stopped, 5)], &["freeze", "stop"], Stopped),
            // What has stopped runs before it is frozen.
            (&[(Stopped, 0), (Frozen, 5)], &["stop", "bring back", "freeze"], Frozen),
            (&[(Frozen, 0), (Running, 0)], &[], Running),
            // Orders that change while something is being done wait for its end.
            (&[(Frozen, 0), (Stopped, 0), (Running, 1)], &["stop", "bring back"], Running),
        ];
        for (orders, expected, state_at_the_end) in table {
            let (done, report) = history(&[], orders).await;
            assert_eq!((&done[..], state(&report)), (expected, (state_at_the_end == Running, state_at_the_end, false)), "{orders:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_suspended_runs_and_is_tried_again() {
        let report = Report::new(&settings());
        runs(&report);
        let hands = Noting { luck: Mutex::new(VecDeque::from([false, true, false, true])), ..Noting::default() };
        order(&report, PowerState::Frozen);
        let started = Instant::now();
        for _ in 0..2 {
            is_due(&report).await;
            keep(&hands, &report).await;
            runs(&report);
            assert_eq!(state(&report), (true, PowerState::Running, true));
        }
        assert_eq!(started.elapsed(), RETRY + Duration::from_secs(4));
        assert_eq!(*hands.done.lock().unwrap(), ["freeze", "bring back", "freeze", "bring back"]);
        // Nobody wants it any more.
        order(&report, PowerState::Running);
        assert!(timeout(Duration::from_secs(1), is_due(&report)).await.is_err(), "nothing is due");
        assert_eq!(state(&report), (true, PowerState::Running, false));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_come_back_is_told_and_tried_again_and_can_be_stopped() {
        use PowerState::{Frozen, Running, Stopped};
        let (done, report) = history(&[true, false, false, true], &[(Frozen, 0), (Running, 5)]).await;
        assert_eq!((&done[..], state(&report)), (&["freeze", "bring back", "bring back", "bring back"][..], (true, Running, false)));
        let (done, report) = history(&[true, false], &[(Frozen, 0), (Running, 5), (Stopped, 5)]).await;
        assert_eq!((&done[..], state(&report)), (&["freeze", "bring back", "stop"][..], (false, Stopped, false)));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_ready_while_suspended() {
        let report = Report::new(&settings());
        report.update(|report| report.nodes = vec![nestling_core::plan::wire::NodeReport { name: "n".into(), control_plane: true, ready: true }]);
        runs(&report);
        order(&report, PowerState::Frozen);
        let _ = timeout(Duration::from_secs(5), keep(&Noting::default(), &report)).await;
        let now = report.subscribe().borrow().clone();
        assert!(!now.control_plane_ready && now.nodes.iter().all(|node| !node.ready));
    }
}
