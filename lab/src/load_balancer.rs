//! The image of the load balancer that kind puts before several control planes. The real one is Envoy's and cannot be built here: HAProxy stands in for it, behind a
//! shell script that reads what kind writes for Envoy.

use std::fs;

use anyhow::{Context, Result};

use crate::archive::{self, Image};
use crate::images::ARCHIVE;
use crate::layer::LayerBuilder;
use crate::part::Part;
use crate::workshop::{Workshop, image_reference};

/// The program that kind starts in the image.
const ENVOY: &str = include_str!("../scripts/envoy.sh");

/// Makes the stand-in. It has kind's name in the store of node pods only, never in the Docker of this machine.
pub fn make(workshop: &Workshop) -> Result<()> {
    let path = workshop.out.join("layer.tar");
    let script = LayerBuilder::default().text("/usr/local/bin/envoy", ENVOY, 0o755).write(path.clone())?;
    let image = Part::LoadBalancer.image().context("the load balancer is no image")?;
    // Without an entry point: kind gives the whole command.
    let image = Image::program(&image_reference(image, workshop.key), vec![workshop.root(Part::LoadBalancerRoot)?, script], "");
    archive::write(&workshop.out.join(ARCHIVE), &[image])?;
    Ok(fs::remove_file(path)?)
}

/// The name under which kind asks for it.
pub fn name(workshop: &Workshop) -> Result<String> {
    let source = workshop.kind_sources()?.join("pkg/cluster/internal/loadbalancer/const.go");
    let text = fs::read_to_string(&source).with_context(|| format!("cannot read {}", source.display()))?;
    image_constant(&text).map(str::to_owned).with_context(|| format!("{} names no image", source.display()))
}

/// The value of `const Image` in a Go source file.
fn image_constant(source: &str) -> Option<&str> {
    source.lines().find(|line| line.starts_with("const Image = "))?.split('"').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    /// What kind 0.33 writes, but for what the stand-in has no use for.
    const LISTENER: &str = r#"
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: listener_apiserver
  address:
    socket_address:
      address: "0.0.0.0"
      port_value: 6443
  filter_chains:
  - filters:
    - name: envoy.filters.network.tcp_proxy
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: ingress_tcp
        cluster: kube_apiservers
"#;
    const CLUSTER: &str = r#"
resources:
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: kube_apiservers
  connect_timeout: 0.25s
  type: STRICT_DNS
  lb_policy: ROUND_ROBIN
  dns_lookup_family: V4_PREFERRED
  health_checks:
  - timeout: 3s
    interval: 2s
    unhealthy_threshold: 2
    healthy_threshold: 1
    no_traffic_interval: 3s
    http_health_check:
      path: /healthz
  transport_socket_matches:
  - name: "health_check_tls"
    match:
      tls_mode: "true"
  load_assignment:
    cluster_name: kube_apiservers
    endpoints:
    - lb_endpoints:
      - endpoint:
          address:
            socket_address:
              address: demo-control-plane
              port_value: 6443
      - endpoint:
          address:
            socket_address:
              address: demo-control-plane2
              port_value: 6443
"#;

    /// The script at work on files in a directory, with a HAProxy that only lives.
    struct Running<'a>(Child, &'a Path);

    impl<'a> Running<'a> {
        fn start(directory: &'a Path) -> Self {
            let program = |name: &str, text: &str| {
                let path = directory.join(name);
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
                path
            };
            let at = directory.display();
            program("haproxy", "#!/bin/bash\ntrap 'exit 0' TERM\ntrap : USR2\nwhile true; do sleep 0.1; done\n");
            let source = |name: &str| format!("  {name}_config:\n    resource_api_version: V3\n    path_config_source:\n      path: {at}/{name}.yaml\n");
            fs::write(directory.join("envoy.yaml"), format!("dynamic_resources:\n{}{}", source("cds"), source("lds"))).unwrap();
            for name in ["cds.yaml", "lds.yaml"] {
                fs::write(directory.join(name), "resources: []").unwrap();
            }
            let path = format!("{at}:{}", std::env::var("PATH").unwrap());
            let mut command = Command::new("bash");
            Self(
                command.arg(program("envoy", ENVOY)).arg("-c").arg(directory.join("envoy.yaml")).env("PATH", path).stderr(Stdio::piped()).spawn().unwrap(),
                directory,
            )
        }

        /// Replaces a file as kind does it.
        fn replace(&self, name: &str, text: &str) {
            let unfinished = self.1.join(format!("{name}.tmp"));
            fs::write(&unfinished, text).unwrap();
            fs::rename(unfinished, self.1.join(name)).unwrap();
        }

        fn configuration(&self) -> String {
            fs::read_to_string(self.1.join("haproxy.cfg")).unwrap_or_default()
        }

        fn becomes(&self, wanted: impl Fn(&str) -> bool) {
            let start = Instant::now();
            while !wanted(&self.configuration()) {
                assert!(start.elapsed() < Duration::from_secs(20), "{}", self.configuration());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    impl Drop for Running<'_> {
        fn drop(&mut self) {
            let _ = Command::new("kill").arg(self.0.id().to_string()).status();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn haproxy_is_told_what_kind_tells_envoy() {
        let directory = tempfile::tempdir().unwrap();
        let envoy = Running::start(directory.path());
        envoy.replace("cds.yaml", CLUSTER);
        envoy.replace("lds.yaml", LISTENER);
        envoy.becomes(|text| text.contains("demo-control-plane2"));
        let lines: Vec<String> = envoy.configuration().lines().map(|line| line.trim().to_owned()).collect();
        for line in [
            "timeout connect 250ms",
            "timeout check 3000ms",
            "bind 0.0.0.0:6443",
            "http-check send meth GET uri /healthz ver HTTP/1.1 hdr Host kube_apiservers",
            "default-server check check-ssl verify none inter 2000ms fall 2 rise 1 resolvers docker resolve-prefer ipv4 init-addr none",
            "server demo-control-plane demo-control-plane:6443",
            "server demo-control-plane2 demo-control-plane2:6443",
        ] {
            assert!(lines.iter().any(|have| have == line), "{line} is not among {lines:#?}");
        }
        envoy.replace("cds.yaml", &CLUSTER.replace("demo-control-plane2", "demo-control-plane3"));
        envoy.becomes(|text| text.contains("demo-control-plane3") && !text.contains("demo-control-plane2"));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut envoy = Running::start(directory.path());
        envoy.replace("cds.yaml", &CLUSTER.replace("ROUND_ROBIN", "MAGLEV"));
        envoy.replace("lds.yaml", LISTENER);
        assert!(!envoy.0.wait().unwrap().success());
        assert_eq!(envoy.configuration(), "");
    }

    #[test]
    fn the_image_is_read_from_kinds_source() {
        assert_eq!(image_constant("package x\n\n// Image\nconst Image = \"docker.io/a/b:v1\"\n"), Some("docker.io/a/b:v1"));
        assert_eq!(image_constant("package x\nvar Image = \"a\"\n"), None);
    }
}
