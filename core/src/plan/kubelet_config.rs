//! A kubelet's configuration file, changed for the machine on which its node comes back.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::problem::Problem;
use crate::api::reasons::Reason;

/// The file in a node, below `/var`.
pub const FILE: &str = "lib/kubelet/config.yaml";

/// Files in which kubelets keep what they gave to whom of the machine that they were on, below `/var`. One with a static policy refuses to start on another machine.
pub const OF_THE_MACHINE: [&str; 2] = ["lib/kubelet/cpu_manager_state", "lib/kubelet/memory_manager_state"];

/// The file with these reservations in the place of its own; `None` if they are there already.
///
/// # Errors
/// [`Reason::ResumeFailed`] for a file that is no kubelet's configuration.
pub fn with_reservations(text: &str, reserved: &BTreeMap<&'static str, String>) -> Result<Option<String>, Problem> {
    let unreadable = |why: String| Problem::new(Reason::ResumeFailed, format!("the kubelet's configuration {why}"));
    let mut document: Value = serde_saphyr::from_str(text).map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    if document["kind"] != "KubeletConfiguration" {
        return Err(unreadable("is none".to_owned()));
    }
    let wanted = json!(reserved);
    let none = json!({});
    if document.get("systemReserved").unwrap_or(&none) == &wanted {
        return Ok(None);
    }
    document["systemReserved"] = wanted;
    serde_saphyr::to_string(&document).map(Some).map_err(|error| unreadable(format!("cannot be written: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// As kubeadm writes it.
    const WRITTEN: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous:
    enabled: false
evictionHard:
  nodefs.available: 10%
  nodefs.inodesFree: 5%
failSwapOn: false
imageGCHighThresholdPercent: 100
kind: KubeletConfiguration
logging:
  verbosity: 0
staticPodPath: /etc/kubernetes/manifests
syncFrequency: 0s
systemReserved:
  memory: 1024Ki
volumePluginDir: \"\"
";

    fn reserved(list: &[(&'static str, &str)]) -> BTreeMap<&'static str, String> {
        list.iter().map(|(name, amount)| (*name, (*amount).to_owned())).collect()
    }

    #[rstest]
    #[case(&[("memory", "4096Ki"), ("cpu", "500m")])]
    #[case(&[("memory", "4096Ki")])]
    #[case(&[])]
    fn only_the_reservations_change(#[case] list: &[(&'static str, &str)]) {
        let written = with_reservations(WRITTEN, &reserved(list)).unwrap().unwrap();
        let read = |text: &str| serde_saphyr::from_str::<Value>(text).unwrap();
        let mut expected = read(WRITTEN);
        expected["systemReserved"] = json!(reserved(list));
        assert_eq!(read(&written), expected);
        assert_eq!(with_reservations(&written, &reserved(list)).unwrap(), None, "a second time there is nothing to do");
    }

    #[test]
    fn what_is_right_is_left_alone() {
        assert_eq!(with_reservations(WRITTEN, &reserved(&[("memory", "1024Ki")])).unwrap(), None);
        let without = WRITTEN.replace("systemReserved:\n  memory: 1024Ki\n", "");
        assert_eq!(with_reservations(&without, &reserved(&[])).unwrap(), None);
    }

    #[rstest]
    #[case("")]
    #[case("kind: [")]
    #[case("kind: Pod")]
    #[case("- KubeletConfiguration")]
    #[case("words")]
    fn what_is_no_configuration_is_refused(#[case] text: &str) {
        assert_eq!(with_reservations(text, &reserved(&[])).unwrap_err().reason, Reason::ResumeFailed);
    }
}
