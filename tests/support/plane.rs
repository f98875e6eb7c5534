//! A bare control plane with Nestling's CRDs: a real kube-apiserver and etcd.

use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use nestling_lab::{ControlPlane, ControlPlaneOptions, Lab, LabPart, LabPaths};

/// A control plane, and a client with all rights.
pub struct Plane {
    /// The processes.
    pub control_plane: ControlPlane,
    /// All rights.
    pub client: Client,
}

/// The lab's programs.
///
/// # Panics
/// If they are not built; says how to build them.
pub fn lab() -> LabPaths {
    let lab = Lab::open().expect("the lab opens");
    lab.paths(LabPart::ControlPlane).expect("cargo xtask lab build control-plane")
}

impl Plane {
    /// Starts a control plane with the CRDs.
    pub async fn start() -> Self {
        Self::start_with(ControlPlane::options()).await
    }

    /// Starts a control plane with these options, controllers and the CRDs.
    pub async fn start_with(options: ControlPlaneOptions) -> Self {
        install_crypto();
        let start = move || options.with_controller_manager(true).start(&lab());
        let control_plane = tokio::task::spawn_blocking(start).await.unwrap().expect("a control plane");
        let kubeconfig = std::fs::read_to_string(control_plane.kubeconfig()).unwrap();
        let client = client(&kubeconfig).await;
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        for crd in nestling_core::api::crds::all() {
            crds.create(&PostParams::default(), &crd).await.expect("the API server accepts the CRD");
            let name = crd.metadata.name.unwrap();
            super::wait::until("the CRD to be established", Duration::from_secs(20), async || {
                let crd = crds.get(&name).await.map_err(|error| error.to_string())?;
                let conditions = crd.status.and_then(|status| status.conditions).unwrap_or_default();
                if conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True") {
                    Ok(())
                } else {
                    Err("not yet".to_owned())
                }
            })
            .await;
        }
        Self { control_plane, client }
    }

    /// A client with the rights of a service account (by a certificate of that user name; the groups that all service accounts are in hold no
    /// right of their own).
    pub async fn client_for(&self, user: &str) -> Client {
        client(&self.control_plane.kubeconfig_for(user, None).unwrap()).await
    }

    /// Makes a namespace.
    pub async fn namespace(&self, name: &str) {
        let namespace = Namespace { metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }, ..Namespace::default() };
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    }

    /// Applies manifests with kubectl.
    pub fn apply(&self, manifests: &str) {
        use std::io::Write;
        let mut child = self.control_plane.kubectl().args(["apply", "--server-side", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(manifests.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "kubectl apply failed for:\n{manifests}");
    }
}

/// A client from a kubeconfig's text.
pub async fn client(kubeconfig: &str) -> Client {
    install_crypto();
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// One TLS provider for the process.
pub fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
