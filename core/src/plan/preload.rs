//! Images that are in every node: which ones, and what is said of those that are not there yet.

use super::observed::Observed;
use super::orders;
use super::wire::Stage;
use crate::api::conditions::{self, Claim};
use crate::api::reasons::Reason;
use crate::api::{KindCluster, KindClusterStatus};

/// The images of a spec.
pub fn images(cluster: &KindCluster) -> Vec<String> {
    cluster.spec.preload.as_ref().map(|preload| preload.images.clone()).unwrap_or_default()
}

/// The images that the current pod was made with.
fn made_with(seen: &Observed) -> Option<Vec<String>> {
    Some(orders::made_with(seen)?.get("preload").and_then(|images| serde_json::from_value(images.clone()).ok()).unwrap_or_default())
}

/// The images that the agent has brought into the nodes, if it is one that can do so while it serves.
fn there(seen: &Observed) -> Option<&Vec<String>> {
    seen.report.as_ref()?.orders.as_ref()?.carried_out.preload.as_ref()
}

/// The images that the running cluster is to have, if they are others than those that it was made with.
pub fn wanted(seen: &Observed) -> Option<Vec<String>> {
    there(seen)?;
    let images = images(&seen.cluster);
    (made_with(seen)? != images).then_some(images)
}

/// What `UpToDate` says of the images; `None`: all are there, or nothing is known. One that is there and no longer asked for is in nobody's way.
pub fn claim(seen: &Observed) -> Option<Claim> {
    let images = images(&seen.cluster);
    let lack = |have: &[String]| images.iter().any(|image| !have.contains(image));
    let report = seen.report.as_ref()?;
    let Some(there) = there(seen) else {
        let message = "preload.images has changed, and the agent of this cluster is of a release that brings no images into a running cluster";
        let cannot = report.stage == Stage::Serving && lack(&made_with(seen)?);
        return cannot.then(|| Claim::no(Reason::RecreateRequired, Reason::RecreateRequired.explain(message)));
    };
    if !lack(there) {
        return None;
    }
    let orders = report.orders.as_ref()?;
    Some(orders::outstanding(orders, Reason::PreloadingImages, orders.received.preload == wanted(seen)))
}

/// Whether images are on their way into a running cluster, so that the agent's word is waited for.
pub fn is_under_way(status: &KindClusterStatus) -> bool {
    conditions::has_reason(&status.conditions, conditions::UP_TO_DATE, Reason::PreloadingImages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::desired::desire;
    use crate::plan::objects::pod;
    use crate::plan::orders;
    use crate::plan::testing;
    use crate::plan::wire::{AgentFailure, AgentReport, Orders, OrdersReport};
    use rstest::rstest;

    const MADE: &str = "{preload: {images: ['a:1']}}";
    const ADDED: &str = "{preload: {images: ['a:1', 'b:1']}}";

    fn list(images: &[&str]) -> Vec<String> {
        images.iter().map(|&image| image.to_owned()).collect()
    }

    /// A cluster that was made with one image and asks for this, with an agent that serves and says this.
    fn seen(spec: &str, received: Option<Vec<String>>, there: Option<Vec<String>>, stage: Stage) -> Observed {
        let made = testing::cluster(MADE);
        let desired = desire(&made, &testing::identity(&made), &testing::settings()).unwrap();
        let mut seen = testing::with_pod(testing::observed(testing::cluster(spec)), 20);
        seen.children.pods[0].metadata.annotations = pod(&made, &desired, &testing::settings(), 1).metadata.annotations;
        let received = Orders { preload: received, ..Orders::default() };
        let orders = OrdersReport { received, carried_out: Orders { preload: there, ..Orders::default() }, failures: vec![] };
        seen.report = Some(AgentReport { stage, orders: Some(orders), ..AgentReport::default() });
        seen
    }

    #[rstest]
    #[case::as_it_was_made(MADE, Some(list(&["a:1"])), None, None)]
    #[case::one_more(ADDED, Some(list(&["a:1"])), Some(list(&["a:1", "b:1"])), Some(Reason::PreloadingImages))]
    #[case::one_more_is_there(ADDED, Some(list(&["a:1", "b:1"])), Some(list(&["a:1", "b:1"])), None)]
    #[case::one_less("{}", Some(list(&["a:1"])), Some(list(&[])), None)]
    #[case::an_agent_that_cannot(ADDED, None, None, Some(Reason::RecreateRequired))]
    #[case::an_agent_that_need_not(MADE, None, None, None)]
    fn images_are_added(#[case] spec: &str, #[case] there: Option<Vec<String>>, #[case] ordered: Option<Vec<String>>, #[case] reason: Option<Reason>) {
        let seen = seen(spec, None, there, Stage::Serving);
        assert_eq!(orders::wanted(&seen).unwrap().preload, ordered);
        assert_eq!(claim(&seen).map(|claim| claim.reason), reason);
    }

    #[test]
    fn nothing_is_said_before_the_cluster_is_served() {
        assert_eq!(claim(&seen(ADDED, None, None, Stage::PreloadingImages)), None);
    }

    #[test]
    fn only_the_failure_of_these_orders_counts() {
        for (received, told) in [(Some(list(&["a:1", "b:1"])), true), (Some(list(&["a:1", "c:1"])), false)] {
            let mut seen = seen(ADDED, received, Some(list(&["a:1"])), Stage::Serving);
            let failure = AgentFailure { reason: Reason::PreloadingImages, message: "no such image".into(), log_tail: String::new() };
            seen.report.as_mut().unwrap().orders.as_mut().unwrap().set_failure(Reason::PreloadingImages, Some(failure));
            assert_eq!(claim(&seen).unwrap().message.starts_with("no such image. "), told);
        }
    }
}
