//! `docs/reference/reasons.md`.

use std::fmt::Write;

use nestling_core::api::conditions;
use nestling_core::api::reasons::Reason;

use super::{PAGE_NOTICE, cell, code};

/// Conditions and what they mean, in the order of [`conditions::ALL`].
const CONDITIONS: [(&str, &str); conditions::ALL.len()] = [
    (
        conditions::READY,
        "The published kubeconfig reaches a healthy API server, and all nodes are ready; the first time of an attempt also: `spec.manifests` are applied, and what `spec.readiness` asks for is so.",
    ),
    (conditions::RECONCILING, "The operator is at work on this generation of the spec (kstatus)."),
    (conditions::STALLED, "Nothing more will happen until somebody changes something; the reason says what (kstatus)."),
    (conditions::HOST_READY, "The pod runs and found its host fit."),
    (conditions::CONTROL_PLANE_READY, "The cluster's API server answers `/readyz`."),
    (conditions::NODES_READY, "Every node of the cluster is ready."),
    (conditions::KUBECONFIG_PUBLISHED, "The Secret with the kubeconfig is written."),
    (
        conditions::ENDPOINTS_READY,
        "Every address that `spec.access` and `spec.ports` ask for is there: the load balancer has given its own, and the pod takes connections for each published port. `Ready` does not depend on it.",
    ),
    (
        conditions::MANIFESTS_APPLIED,
        "What `spec.manifests` lists has been applied inside the cluster, as it is now. Also `True` where nothing is listed. `Ready` waits for it only the first time.",
    ),
    (
        conditions::NETWORK_POLICY_ENFORCED,
        "The pod cannot reach what its NetworkPolicy forbids: the host's CNI enforces policies. `Unknown` where the pod cannot tell, or still tries (`Pending`, at most a minute and a half). `Ready` does not depend on it.",
    ),
    (conditions::DISK_PRESSURE, "The volume of the cluster is about to be full; beyond its size the host ends the pod. `Ready` does not depend on it."),
    (
        conditions::CERTIFICATES_VALID,
        "The certificates of the cluster's nodes are renewed in time. `False` says which one is not, some four months before it ends. `Ready` does not depend on it.",
    ),
    (conditions::UP_TO_DATE, "What runs is what the spec says. `False` with `RecreateRequired` names what only a new cluster can take over."),
    (conditions::SUSPENDED, "The nodes are frozen or stopped because `spec.powerState` says so. `False` while they run or are on their way."),
    (conditions::EXPIRING, "The cluster is about to be deleted because its time is over; the message says when. `False` if that is far or never."),
    (conditions::PAUSED, "`spec.paused` is set."),
    (conditions::DELETING, "The object is being deleted; the message says what is left."),
];

/// The page.
pub fn page() -> String {
    let mut text = PAGE_NOTICE.to_owned();
    text += "# Conditions and reasons\n\n\
        Every condition is present from the operator's first look at an object. The message of a condition says what happened and, where there is\n\
        something to do, what to do. What to do when many clusters fail is in [operations.md](../operations.md).\n\n\
        ## Conditions\n\n\
        | Type | True means |\n|---|---|\n";
    for (type_, meaning) in CONDITIONS {
        let _ = writeln!(text, "| {} | {} |", code(type_), cell(meaning));
    }
    text += "\n## Reasons\n\n| Reason | Meaning | What to do |\n|---|---|---|\n";
    for reason in Reason::ALL {
        // In lower case, as the anchors of headings are: alerts link to them.
        let anchor = reason.as_str().to_lowercase();
        let _ = writeln!(text, "| <a id=\"{anchor}\"></a>{} | {} | {} |", code(reason.as_str()), cell(reason.meaning()), cell(reason.remedy()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_is_on_the_page() {
        assert_eq!(CONDITIONS.map(|(type_, _)| type_), conditions::ALL);
    }
}
