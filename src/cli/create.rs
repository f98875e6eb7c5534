//! `nestling create`.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::Result;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, PostParams};
use nestling_core::api::KindCluster;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::args::DryRun;
use super::exit::GONE;
use super::failure::{Failure, command};
use super::host::{Host, connect};
use super::kubeconfig::{Place, merge_if_reachable};
use super::select::answer;
use super::{CreateArgs, Goal, HostArgs, extend, output, wait};

/// Creates a cluster.
pub async fn run(args: HostArgs, verb: CreateArgs) -> Result<()> {
    let started = Instant::now();
    let config = verb.config.as_deref().map(config).transpose()?;
    let object = object(&verb, config);
    if verb.dry_run == Some(DryRun::Client) {
        let object = in_namespace(object, args.namespace.as_deref());
        return print(object, &verb);
    }
    let host = connect(args.clone()).await?;
    let made = create(&host, object, &verb).await?;
    print(made, &verb)?;
    let Some(limit) = verb.wait else {
        if verb.dry_run.is_none() && verb.output.is_none() {
            eprintln!("→ {}", command(&format!("wait -n {} {}", host.namespace, verb.name)));
        }
        return Ok(());
    };
    let ready = wait::until(&host, std::slice::from_ref(&verb.name), Goal::Ready, limit, started).await?;
    for cluster in ready.iter().filter(|_| !verb.no_kubeconfig) {
        let place = Place { set_current: !verb.keep_context, ..Place::default() };
        let told = match merge_if_reachable(&args, &host, cluster, &place).await? {
            Some(merged) => merged.told(),
            None => format!(
                "It can be reached inside the host cluster only, so your kubeconfig stays as it is.\n→ {}",
                command(&format!("connect -n {} {}", host.namespace, verb.name))
            ),
        };
        writeln!(std::io::stdout(), "{told}")?;
    }
    Ok(())
}

async fn create(host: &Host, object: Value, verb: &CreateArgs) -> Result<Value> {
    let api: Api<DynamicObject> = Api::namespaced_with(host.client.clone(), &host.namespace, &ApiResource::erase::<KindCluster>(&()));
    let object: DynamicObject = serde_json::from_value(object)?;
    let params = PostParams { dry_run: verb.dry_run.is_some(), field_manager: Some("nestling-cli".to_owned()) };
    match api.create(&params, &object).await {
        Ok(made) => Ok(serde_json::to_value(made)?),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Err(exists(&host.namespace, &verb.name).into()),
        Err(kube::Error::Api(status)) if status.code == 404 && status.details.as_ref().is_some_and(|details| details.kind == "namespaces") => {
            Err(no_namespace(&host.namespace).into())
        }
        Err(error) => Err(answer(error, &format!("create KindCluster {}/{}", host.namespace, verb.name))),
    }
}

fn exists(namespace: &str, name: &str) -> Failure {
    let words = format!("delete -n {namespace} {name}");
    Failure::new(format!("there is a KindCluster {namespace}/{name} already"), format!("Choose another name, or delete it first: `{}`.", command(&words)))
}

fn no_namespace(namespace: &str) -> Failure {
    Failure::new(format!("there is no namespace {namespace}"), format!("Choose another with --namespace, or make it: `kubectl create namespace {namespace}`."))
        .with_code(GONE)
}

/// Reads a kind configuration.
fn config(path: &Path) -> Result<Value> {
    let unreadable = |error: std::io::Error| {
        Failure::new(format!("cannot read {}: {error}", path.display()), "Give the path of a kind configuration, or - for standard input.")
    };
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(unreadable)?;
        text
    } else {
        std::fs::read_to_string(path).map_err(unreadable)?
    };
    let next = "It must be one `kind: Cluster` of kind.x-k8s.io/v1alpha4, as `kind create cluster --config` takes it.";
    let config: Value = serde_saphyr::from_str(&text).map_err(|error| Failure::new(format!("{} cannot be understood: {error}", path.display()), next))?;
    if !config.is_object() {
        return Err(Failure::new(format!("{} holds no kind configuration", path.display()), next).into());
    }
    Ok(config)
}

/// The object that the flags describe.
fn object(verb: &CreateArgs, config: Option<Value>) -> Value {
    let mut spec = Map::new();
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            spec.insert(key.to_owned(), value);
        }
    };
    set("version", verb.version.clone().map(Value::from));
    set("image", verb.image.clone().map(Value::from));
    let nodes: Map<String, Value> = [("controlPlanes", verb.control_planes), ("workers", verb.workers)]
        .into_iter()
        .filter_map(|(key, number)| Some((key.to_owned(), number?.into())))
        .collect();
    set("nodes", (!nodes.is_empty()).then(|| nodes.into()));
    set("config", config);
    set("access", verb.access_type.map(|type_| json!({"service": {"type": format!("{type_:?}")}})));
    set("lifecycle", verb.ttl.map(|ttl| json!({"ttl": extend::go_duration(ttl)})));
    let mut metadata = json!({"name": verb.name});
    if !verb.labels.is_empty() {
        metadata["labels"] =
            verb.labels.iter().cloned().collect::<std::collections::BTreeMap<_, _>>().into_iter().map(|(key, value)| (key, Value::from(value))).collect();
    }
    let types = ApiResource::erase::<KindCluster>(&());
    json!({"apiVersion": types.api_version, "kind": types.kind, "metadata": metadata, "spec": spec})
}

fn in_namespace(mut object: Value, namespace: Option<&str>) -> Value {
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = namespace.into();
    }
    object
}

/// Says what was made, in the wanted form.
fn print(object: Value, verb: &CreateArgs) -> Result<()> {
    let text = match verb.output {
        Some(form) => output::objects(vec![object], form, true)?,
        None => None,
    };
    let how = match verb.dry_run {
        None => "",
        Some(DryRun::Client) => " (dry run)",
        Some(DryRun::Server) => " (server dry run)",
    };
    let text = text.unwrap_or_else(|| format!("kindcluster.nestling.dev/{} created{how}\n", verb.name));
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{UserVerbs, Verb};

    fn parsed(words: &str) -> CreateArgs {
        match UserVerbs::try_parse_from(format!("nestling create {words}").split(' ')).unwrap().verb {
            Verb::Create(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_an_object() {
        let config = json!({"kind": "Cluster", "nodes": [{"role": "control-plane", "future": 1}]});
        let words = "demo --image kindest/node:v1 --control-planes 3 --workers 2 --ttl 1h30m --access-type NodePort --label a=b --label c=";
        insta::assert_snapshot!(output::yaml(&object(&parsed(words), Some(config))).unwrap());
        insta::assert_snapshot!(output::yaml(&in_namespace(object(&parsed("demo"), None), Some("marsh"))).unwrap());
        for type_ in ["ClusterIP", "NodePort", "LoadBalancer"] {
            let made = object(&parsed(&format!("demo --access-type {type_}")), None);
            assert_eq!(made["spec"]["access"]["service"]["type"], type_);
        }
    }

    #[test]
    fn wait_is_written_as_with_kind() {
        for (words, seconds) in [("demo", None), ("demo --wait", Some(900)), ("demo --wait 60s", Some(60)), ("demo --wait=2m", Some(120))] {
            assert_eq!(parsed(words).wait.map(|wait| wait.as_secs()), seconds, "{words}");
        }
        for words in ["", "demo --wait soon", "demo --wait -o yaml", "demo --version v1 --image i", "demo --label a", "demo --keep-context"] {
            assert!(UserVerbs::try_parse_from(format!("nestling create {words}").split_whitespace()).is_err(), "{words}");
        }
    }

    #[test]
    fn a_configuration_is_yaml_with_something_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kind.yaml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            config(&path)
        };
        assert_eq!(read("kind: Cluster\nnodes:\n- role: worker\n").unwrap(), json!({"kind": "Cluster", "nodes": [{"role": "worker"}]}));
        for text in ["", "text", "a: [", "[1]"] {
            assert!(read(text).unwrap_err().to_string().contains("→ It must be one `kind: Cluster`"), "{text}");
        }
        assert!(config(&directory.path().join("none")).unwrap_err().to_string().contains("→ Give the path"));
    }
}
