//! `nestling doctor`: the checks that each cluster's pod makes, on every node of the host, before anybody creates a cluster.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::{Api, Client, ResourceExt};
use nestling_core::api::reasons::Reason;
use nestling_core::plan::findings::{Finding, Severity};
use nestling_core::plan::objects::{DOCTOR_LABEL, Examination, doctor_pod};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::exit::STALLED;
use super::failure::Failure;
use super::host::{connect, explain};
use super::{DoctorArgs, HostArgs, Output};

/// Pause between two looks at a pod.
const PAUSE: Duration = Duration::from_millis(500);

/// What is known of one node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Diagnosis {
    node: String,
    findings: Vec<Found>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    #[serde(flatten)]
    finding: Finding,
    remedy: &'static str,
}

impl Diagnosis {
    fn new(node: String, findings: Vec<Finding>) -> Self {
        Self { node, findings: findings.into_iter().map(|finding| Found { remedy: finding.reason.remedy(), finding }).collect() }
    }

    fn is_unfit(&self) -> bool {
        self.findings.iter().any(|found| found.finding.severity == Severity::Problem)
    }
}

/// Looks at every node.
pub async fn run(host: HostArgs, args: DoctorArgs) -> Result<()> {
    let client = connect(host).await?.client;
    let examination = examination(&client, &args).await?;
    let nodes = nodes(&client, &args.nodes).await?;
    let pods: Api<Pod> = Api::namespaced(client, &examination.namespace);
    // Whatever ends it, no pod stays; what an earlier run left goes as well.
    clean(&pods).await?;
    let examined = tokio::select! {
        examined = examine_all(&pods, &nodes, &examination, args.timeout) => Ok(examined),
        _ = tokio::signal::ctrl_c() => Err(Failure::new("interrupted", "Run it again; nothing is left of this run.")),
    };
    clean(&pods).await?;
    let diagnoses = examined?;

    let text = match args.output {
        Output::Table => table(&diagnoses),
        Output::Json => serde_json::to_string_pretty(&diagnoses)? + "\n",
    };
    std::io::stdout().write_all(text.as_bytes())?;
    let unfit = diagnoses.iter().filter(|diagnosis| diagnosis.is_unfit()).count();
    if unfit == 0 {
        return Ok(());
    }
    let what = format!("{unfit} of {} node(s) cannot run clusters", diagnoses.len());
    Err(Failure::new(what, "Follow what is said behind the arrows above, or keep clusters off these nodes.").with_code(STALLED).into())
}

/// What the operator of this host would run, unless the command line says otherwise.
async fn examination(client: &Client, args: &DoctorArgs) -> Result<Examination> {
    let operator = match args.image {
        Some(_) => BTreeMap::new(),
        None => operators_arguments(client).await?,
    };
    let said = |name: &str| operator.get(name).cloned();
    let Some(image) = args.image.clone().or_else(|| said("pod-image")) else {
        return Err(Failure::new("no operator was found whose node image could be used", "Give --image.").into());
    };
    let seconds = args.timeout.as_secs().clamp(10, 3600);
    Ok(Examination {
        namespace: args.clusters_namespace.clone().or_else(|| said("clusters-namespace")).unwrap_or_else(|| "nestling-clusters".to_owned()),
        image,
        image_pull_policy: said("pod-image-pull-policy").unwrap_or_default(),
        pull_secrets: args.pull_secrets.clone(),
        allow_cgroup_v1: args.allow_cgroup_v1 || operator.contains_key("allow-cgroup-v1"),
        deadline_seconds: i64::try_from(seconds).unwrap_or(3600),
    })
}

/// The flags of the first operator that the chart has installed.
async fn operators_arguments(client: &Client) -> Result<BTreeMap<String, String>> {
    let deployments: Api<Deployment> = Api::all(client.clone());
    let ours = ListParams::default().labels("app.kubernetes.io/name=nestling");
    let found = deployments.list(&ours).await.map_err(|error| explain(error, "look for the operator (or give --image)"))?;
    let containers = found.into_iter().filter_map(|deployment| deployment.spec?.template.spec).flat_map(|spec| spec.containers);
    Ok(containers.filter_map(|container| container.args).find(|args| args.iter().any(|arg| arg == "operator")).map(|args| flags(&args)).unwrap_or_default())
}

/// `--name=value` and `--name`.
fn flags(arguments: &[String]) -> BTreeMap<String, String> {
    let flags = arguments.iter().filter_map(|argument| argument.strip_prefix("--"));
    flags.map(|flag| flag.split_once('=').unwrap_or((flag, ""))).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The nodes to look at: those named, or all with Linux.
async fn nodes(client: &Client, named: &[String]) -> Result<Vec<String>> {
    let linux = ListParams::default().labels("kubernetes.io/os=linux");
    let all: Vec<String> = Api::<Node>::all(client.clone())
        .list(&linux)
        .await
        .map_err(|error| explain(error, "list the host's nodes"))?
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    if let Some(unknown) = named.iter().find(|name| !all.contains(name)) {
        return Err(Failure::new(format!("the host has no Linux node {unknown}"), format!("It has {}.", all.join(", "))).into());
    }
    Ok(if named.is_empty() { all } else { named.to_vec() })
}

async fn clean(pods: &Api<Pod>) -> Result<()> {
    let (label, value) = DOCTOR_LABEL;
    let ours = ListParams::default().labels(&format!("{label}={value}"));
    for pod in pods.list(&ours).await.map_err(|error| explain(error, "list pods in the clusters namespace"))? {
        match pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            done => drop(done.map_err(|error| explain(error, "delete pods in the clusters namespace"))?),
        }
    }
    Ok(())
}

async fn examine_all(pods: &Api<Pod>, nodes: &[String], examination: &Examination, limit: Duration) -> Vec<Diagnosis> {
    join_all(nodes.iter().map(|node| async {
        let findings = match examine(pods, node, examination, limit).await {
            Ok(findings) => findings,
            Err(error) => vec![Finding::problem(Reason::PodStartFailed, format!("The node could not be looked at: {error:#}."))],
        };
        Diagnosis::new(node.clone(), findings)
    }))
    .await
}

/// Has one node looked at.
async fn examine(pods: &Api<Pod>, node: &str, examination: &Examination, limit: Duration) -> Result<Vec<Finding>> {
    let made = pods.create(&PostParams::default(), &doctor_pod(node, examination)).await.map_err(|error| explain(error, "create a privileged pod"))?;
    let name = made.name_any();
    let deadline = Instant::now() + limit;
    loop {
        let pod = pods.get(&name).await.map_err(|error| explain(error, "read the pod"))?;
        match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
            Some("Succeeded") => break,
            Some("Failed") => bail!("its pod failed{}", state(&pod)),
            _ if Instant::now() >= deadline => bail!("its pod has not ended within {} s{}", limit.as_secs(), state(&pod)),
            _ => sleep(PAUSE).await,
        }
    }
    let log = pods.logs(&name, &LogParams::default()).await.map_err(|error| explain(error, "read the pod's log"))?;
    read(&log)
}

/// What the host says of a pod that does not get on.
fn state(pod: &Pod) -> String {
    let Some(status) = &pod.status else { return String::new() };
    let waiting = status.container_statuses.iter().flatten().find_map(|container| {
        let state = container.state.as_ref()?;
        let waiting = state.waiting.as_ref().and_then(|waiting| waiting.message.clone().or_else(|| waiting.reason.clone()));
        waiting.or_else(|| state.terminated.as_ref().and_then(|ended| ended.message.clone().or_else(|| ended.reason.clone())))
    });
    waiting.or_else(|| status.message.clone()).map(|text| format!(": {}", text.trim_end_matches('.'))).unwrap_or_default()
}

/// The findings are the last line that an agent prints.
fn read(log: &str) -> Result<Vec<Finding>> {
    let line = log.lines().rfind(|line| line.starts_with('[')).context("its pod said nothing")?;
    serde_json::from_str(line).context("its pod said nothing that can be understood")
}

/// For people: a line per finding, its remedy below it.
fn table(diagnoses: &[Diagnosis]) -> String {
    let mut rows = vec![["NODE".to_owned(), "RESULT".to_owned(), "REASON".to_owned(), "DETAIL".to_owned()]];
    for diagnosis in diagnoses {
        if diagnosis.findings.is_empty() {
            rows.push([diagnosis.node.clone(), "fit".to_owned(), String::new(), String::new()]);
        }
        for Found { finding, remedy } in &diagnosis.findings {
            let result = match finding.severity {
                Severity::Warning => "warning",
                Severity::Problem => "problem",
            };
            rows.push([diagnosis.node.clone(), result.to_owned(), finding.reason.to_string(), finding.message.clone()]);
            if !remedy.is_empty() {
                rows.push([String::new(), String::new(), String::new(), format!("→ {remedy}")]);
            }
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let [node, result, reason] = [0, 1, 2].map(width);
    rows.iter().map(|[a, b, c, d]| format!("{a:node$}  {b:result$}  {c:reason$}  {d}").trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_get_a_table() {
        let findings = vec![
            Finding::problem(Reason::UnsupportedCgroupV1, "The host uses cgroup v1."),
            Finding::warning(Reason::InotifyLimitTooLow, "fs.inotify.max_user_instances is 128; 512 is advised."),
        ];
        let diagnoses = [Diagnosis::new("crane-1".into(), findings), Diagnosis::new("crane-2".into(), vec![])];
        assert_eq!(diagnoses.iter().map(Diagnosis::is_unfit).collect::<Vec<_>>(), [true, false]);
        insta::assert_snapshot!(table(&diagnoses));
    }

    #[test]
    fn the_last_line_of_a_log_is_what_counts() {
        assert_eq!(read("a warning\n[]\n").unwrap(), []);
        let found = read(r#"[{"severity":"problem","reason":"KmsgUnreadable","message":"m"}]"#).unwrap();
        assert_eq!(found, [Finding::problem(Reason::KmsgUnreadable, "m")]);
        for nonsense in ["", "hello", "[1]"] {
            assert!(read(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn the_operators_flags_are_read() {
        let arguments = ["operator", "--pod-image=r/node:1", "--allow-cgroup-v1", "--admin-address=0.0.0.0:8080"].map(str::to_owned);
        let flags = flags(&arguments);
        assert_eq!(flags["pod-image"], "r/node:1");
        assert!(flags.contains_key("allow-cgroup-v1") && !flags.contains_key("operator"));
    }
}
