//! NodePorts of a cluster that are published on the host: reached from outside of it and from within, added and taken away while the cluster runs, and refused
//! while it sleeps. One real cluster for all of it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::real::{Host, TOOLS, spec};
use crate::support::wait::{condition, until};
use nestling_core::api::PortStatus;
use nestling_core::api::conditions::{ENDPOINTS_READY, READY, SUSPENDED, get};
use serde_json::json;

const NAMESPACE: &str = "t-ports";
const NAME: &str = "woodpecker";

/// Longest until a change is carried out, on a machine that does other things as well.
const SOON: Duration = Duration::from_mins(1);

/// Who is refused hears it within this.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A web server behind two NodePorts.
fn workload() -> String {
    format!(
        r"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: {TOOLS}
        imagePullPolicy: Never
        command: [bash, -ec, 'mkdir /page; echo pecked > /page/index.html; exec busybox httpd -f -p 8080 -h /page']
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  selector: {{app: web}}
  ports:
  - {{name: first, port: 80, targetPort: 8080, nodePort: 30080}}
  - {{name: second, port: 81, targetPort: 8080, nodePort: 30081}}
"
    )
}

fn connect(address: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// Asks for the page over a connection.
fn ask(mut stream: TcpStream) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Asks for the page, from this machine.
fn page(address: &str) -> Result<(), String> {
    let answer = connect(address).and_then(ask).map_err(|error| error.to_string())?;
    if answer.contains("pecked") { Ok(()) } else { Err(answer) }
}

/// How a connection is refused, and how long that took. Where the host's own proxy has no rule any more it is its node that refuses.
fn refusal(address: &str) -> Result<(ErrorKind, Duration), String> {
    let started = Instant::now();
    match connect(address).and_then(ask) {
        Err(error) => Ok((error.kind(), started.elapsed())),
        Ok(answer) if answer.is_empty() => Ok((ErrorKind::UnexpectedEof, started.elapsed())),
        Ok(answer) => Err(format!("answered {answer:?}")),
    }
}

/// The published ports once they are as the spec in its present generation says.
async fn published(host: &Host) -> Vec<PortStatus> {
    let api = host.clusters(NAMESPACE);
    until("the ports to be as the spec says", SOON, async || {
        let cluster = api.get(NAME).await.unwrap();
        let (generation, status) = (cluster.metadata.generation, cluster.status.unwrap());
        let condition = get(&status.conditions, ENDPOINTS_READY).cloned().unwrap();
        if condition.status == "True" && condition.observed_generation == generation { Ok(status.ports) } else { Err(format!("{condition:?}")) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_published_while_the_cluster_runs_and_refused_while_it_sleeps() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    host.create(NAMESPACE, NAME, spec("{access: {service: {type: NodePort}}, ports: [{name: first, port: 80, targetNodePort: 30080}]}")).await;
    host.ready(NAMESPACE, NAME).await;
    let ports = published(&host).await;
    let first = ports[0].external.clone().unwrap();
    assert!(ports.len() == 1 && ports[0].open && first.ends_with(&format!(":{}", ports[0].node_port.unwrap())), "{ports:?}");
    // Nothing is behind it yet: nobody waits for an answer.
    let (_, took) = refusal(&first).unwrap();
    assert!(took < AT_ONCE, "{took:?}");

    let external = host.kubeconfig(NAMESPACE, NAME, "external").await;
    host.apply_outside(&external, &workload());
    host.kubectl_outside(&external, &["rollout", "status", "deployment/web", "--timeout=120s"]).unwrap();
    until("the page from outside", SOON, async || page(&first)).await;
    let inside = host.visit(NAMESPACE, &format!("{NAME}-kubeconfig"), &format!("curl -sS --max-time 10 http://{}/", ports[0].internal)).await;
    assert!(inside.as_ref().is_ok_and(|page| page.contains("pecked")), "{inside:?}");

    let second = a_port_is_added(&host, &first).await;
    a_port_is_taken_away(&host, &first, &second).await;
    nobody_waits_while_it_sleeps(&host, &second).await;
    host.delete(NAMESPACE, NAME).await;
    host.delete_namespace(NAMESPACE).await;
}

/// Who is connected through another one notices nothing.
async fn a_port_is_added(host: &Host, first: &str) -> String {
    let open = connect(first).unwrap();
    let started = Instant::now();
    let both = json!([{"name": "first", "port": 80, "targetNodePort": 30080}, {"name": "second", "port": 8081, "targetNodePort": 30081}]);
    host.patch(NAMESPACE, NAME, json!({"spec": {"ports": both}})).await;
    let ports = published(host).await;
    assert_eq!(ports[0].external.as_deref(), Some(first), "a port of the nodes stays whose it is");
    let second = ports[1].external.clone().unwrap();
    until("the page through the new port", SOON, async || page(&second)).await;
    println!("a port was published after {:.1} s", started.elapsed().as_secs_f64());
    assert!(ask(open).unwrap().contains("pecked"), "an open connection was lost");
    second
}

async fn a_port_is_taken_away(host: &Host, first: &str, second: &str) {
    let mut open = connect(first).unwrap();
    host.patch(NAMESPACE, NAME, json!({"spec": {"ports": [{"name": "second", "port": 8081, "targetNodePort": 30081}]}})).await;
    let ports = published(host).await;
    assert_eq!((ports.len(), ports[0].external.as_deref()), (1, Some(second)));
    let kind = until("the port to be refused", SOON, async || {
        refusal(first).and_then(|(kind, took)| if took < AT_ONCE { Ok(kind) } else { Err(format!("{took:?}")) })
    })
    .await;
    assert!(matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset), "{kind}");
    let ended = open.read(&mut [0; 1]);
    assert!(ended.is_err() || ended.is_ok_and(|bytes| bytes == 0), "a connection outlived its port");
    page(second).unwrap();
}

async fn nobody_waits_while_it_sleeps(host: &Host, second: &str) {
    let power = async |state: &str| host.patch(NAMESPACE, NAME, json!({"spec": {"powerState": state}})).await;
    power("Frozen").await;
    let frozen = condition(&host.clusters(NAMESPACE), NAME, SUSPENDED, "True", Some("Frozen"), SOON).await.status.unwrap();
    assert!(!frozen.ports[0].open, "{:?}", frozen.ports);
    let (kind, took) = refusal(second).unwrap();
    assert!(kind == ErrorKind::ConnectionRefused && took < AT_ONCE, "{kind} after {took:?}");
    power("Running").await;
    condition(&host.clusters(NAMESPACE), NAME, READY, "True", None, SOON).await;
    until("the page after the thaw", SOON, async || page(second)).await;
}
