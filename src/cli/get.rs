//! `nestling get`. The table is the API server's own, so that its columns are those of the CRD, whatever release that is of.

use std::io::Write;
use std::pin::pin;

use anyhow::Result;
use futures::StreamExt;
use kube::api::{GetParams, ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use kube::{Client, Resource};
use nestling_core::api::KindCluster;
use serde::Deserialize;
use serde_json::Value;

use super::failure::Failure;
use super::host::{Host, connect, no_such};
use super::output::{self, columns};
use super::select::answer;
use super::{Form, GetArgs, HostArgs};

/// Asks the API server for a table instead of objects.
const AS_TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// A `meta.k8s.io/v1` Table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    #[serde(default)]
    metadata: TableMetadata,
    #[serde(default)]
    column_definitions: Vec<Column>,
    #[serde(default)]
    rows: Vec<Row>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TableMetadata {
    #[serde(default)]
    resource_version: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Column {
    name: String,
    #[serde(default)]
    priority: i32,
}

#[derive(Clone, Debug, Deserialize)]
struct Row {
    cells: Vec<Value>,
    #[serde(default)]
    object: Value,
}

/// Lists clusters.
pub async fn run(args: HostArgs, verb: GetArgs) -> Result<()> {
    let host = connect(args).await?;
    let question = Question { host: &host, verb: &verb };
    match verb.output {
        Some(form) if form != Form::Wide => question.objects(form).await,
        form => question.table(form == Some(Form::Wide)).await,
    }
}

/// What is asked.
struct Question<'a> {
    host: &'a Host,
    verb: &'a GetArgs,
}

impl Question<'_> {
    fn client(&self) -> &Client {
        &self.host.client
    }

    fn request(&self) -> Request {
        let namespace = (!self.verb.all_namespaces).then_some(self.host.namespace.as_str());
        Request::new(KindCluster::url_path(&(), namespace))
    }

    fn selection(&self) -> ListParams {
        self.verb.selector.as_ref().map_or_else(ListParams::default, |labels| ListParams::default().labels(labels))
    }

    /// What cannot be read.
    fn what(&self) -> String {
        if self.verb.all_namespaces {
            "list KindClusters in all namespaces".to_owned()
        } else {
            format!("list KindClusters in namespace {}", self.host.namespace)
        }
    }

    /// One that is named; `None` if there is none.
    async fn named<T: for<'de> Deserialize<'de>>(&self, name: &str, accept: &'static str) -> Result<Option<T>> {
        let mut request = self.request().get(name, &GetParams::default()).map_err(|_| no_such(&self.host.namespace, name))?;
        request.headers_mut().insert("accept", accept.parse()?);
        match self.client().request::<T>(request).await {
            Ok(found) => Ok(Some(found)),
            Err(kube::Error::Api(status)) if status.code == 404 && status.details.as_ref().is_some_and(|details| !details.name.is_empty()) => Ok(None),
            Err(error) => Err(answer(error, &format!("read KindCluster {}/{name}", self.host.namespace))),
        }
    }

    async fn list<T: for<'de> Deserialize<'de>>(&self, accept: &'static str) -> Result<T> {
        let mut request = self.request().list(&self.selection()).map_err(|error| answer(kube::Error::BuildRequest(error), &self.what()))?;
        request.headers_mut().insert("accept", accept.parse()?);
        self.client().request(request).await.map_err(|error| answer(error, &self.what()))
    }

    /// Prints objects for programs.
    async fn objects(&self, form: Form) -> Result<()> {
        if self.verb.watch {
            return Err(Failure::new("only the table can be watched", "Leave --watch or --output out.").into());
        }
        let mut missing = None;
        let objects = if self.verb.names.is_empty() {
            let list: Value = self.list("application/json").await?;
            list["items"].as_array().cloned().unwrap_or_default()
        } else {
            let mut found = Vec::new();
            for name in &self.verb.names {
                match self.named(name, "application/json").await? {
                    Some(object) => found.push(object),
                    None => missing = missing.or(Some(no_such(&self.host.namespace, name))),
                }
            }
            found
        };
        // One that was named and is missing is no list.
        if missing.is_none() || !objects.is_empty() {
            let text = output::objects(objects, form, self.verb.names.len() == 1)?.unwrap_or_default();
            std::io::stdout().write_all(text.as_bytes())?;
        }
        missing.map_or(Ok(()), |missing| Err(missing.into()))
    }

    /// Prints the table, and goes on if it is watched.
    async fn table(&self, wide: bool) -> Result<()> {
        let (mut table, mut missing) = (Table::default(), None);
        if self.verb.names.is_empty() {
            table = self.list(AS_TABLE).await?;
        }
        for name in &self.verb.names {
            match self.named::<Table>(name, AS_TABLE).await? {
                Some(found) => {
                    table.column_definitions = found.column_definitions;
                    table.rows.extend(found.rows);
                }
                None => missing = missing.or(Some(no_such(&self.host.namespace, name))),
            }
        }
        if table.rows.is_empty() && missing.is_none() && !self.verb.watch {
            let place = if self.verb.all_namespaces { String::new() } else { format!(" in namespace {}", self.host.namespace) };
            eprintln!("no KindCluster found{place}");
        }
        let shown = Shown::new(&table.column_definitions, wide, self.verb.all_namespaces);
        let mut rows = shown.rows(&table.rows);
        if !rows.is_empty() {
            rows.insert(0, shown.header());
            std::io::stdout().write_all(columns(&rows).as_bytes())?;
        }
        if self.verb.watch {
            return self.watch(table, &rows, wide).await;
        }
        missing.map_or(Ok(()), |missing| Err(missing.into()))
    }

    /// Prints a line for each change, in columns as wide as those above.
    async fn watch(&self, table: Table, above: &[Vec<String>], wide: bool) -> Result<()> {
        let params = WatchParams { label_selector: self.verb.selector.clone(), ..WatchParams::default() };
        let (mut version, mut above) = (table.metadata.resource_version, above.to_vec());
        let mut shown = Shown::new(&table.column_definitions, wide, self.verb.all_namespaces);
        loop {
            let mut request = self.request().watch(&params, &version).map_err(|error| answer(kube::Error::BuildRequest(error), &self.what()))?;
            request.headers_mut().insert("accept", AS_TABLE.parse()?);
            let events = self.client().request_events::<Table>(request).await.map_err(|error| answer(error, &self.what()))?;
            let mut events = pin!(events);
            while let Some(event) = events.next().await {
                let table = match event.map_err(|error| answer(error, &self.what()))? {
                    WatchEvent::Added(table) | WatchEvent::Modified(table) | WatchEvent::Deleted(table) => table,
                    WatchEvent::Error(status) => return Err(answer(kube::Error::Api(status), &self.what())),
                    WatchEvent::Bookmark(_) => continue,
                };
                if !table.column_definitions.is_empty() {
                    shown = Shown::new(&table.column_definitions, wide, self.verb.all_namespaces);
                }
                if above.is_empty() {
                    above.push(shown.header());
                    std::io::stdout().write_all(columns(&above).as_bytes())?;
                }
                for row in &table.rows {
                    if let Some(newer) = row.object["metadata"]["resourceVersion"].as_str() {
                        newer.clone_into(&mut version);
                    }
                }
                for row in shown.rows(&table.rows) {
                    above.push(row);
                    let text = columns(&above);
                    std::io::stdout().write_all(text.lines().last().map(|line| format!("{line}\n")).unwrap_or_default().as_bytes())?;
                    // The header and the widest are enough to keep the columns.
                    if above.len() > 200 {
                        above.drain(1..100);
                    }
                }
            }
        }
    }
}

/// Which columns of a table are shown.
struct Shown {
    names: Vec<String>,
    indices: Vec<usize>,
    with_namespace: bool,
}

impl Shown {
    fn new(columns: &[Column], wide: bool, with_namespace: bool) -> Self {
        let shown = columns.iter().enumerate().filter(|(_, column)| wide || column.priority == 0);
        let (indices, names) = shown.map(|(index, column)| (index, column.name.to_uppercase())).unzip();
        Self { names, indices, with_namespace }
    }

    fn header(&self) -> Vec<String> {
        self.with_namespace.then(|| "NAMESPACE".to_owned()).into_iter().chain(self.names.iter().cloned()).collect()
    }

    fn rows(&self, rows: &[Row]) -> Vec<Vec<String>> {
        let row = |row: &Row| {
            let namespace = self.with_namespace.then(|| row.object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned());
            namespace.into_iter().chain(self.indices.iter().map(|index| cell(row.cells.get(*index)))).collect()
        };
        rows.iter().map(row).collect()
    }
}

/// A cell as kubectl shows it.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_as_kubectl_shows_it() {
        let table: Table = serde_json::from_value(json!({
            "kind": "Table", "metadata": {"resourceVersion": "7"},
            "columnDefinitions": [{"name": "Name", "type": "string"}, {"name": "Ready", "type": "string"}, {"name": "Age", "type": "date"},
                {"name": "Endpoint", "type": "string", "priority": 1}],
            "rows": [
                {"cells": ["crane", "True", "5m", "https://a"], "object": {"metadata": {"namespace": "marsh", "resourceVersion": "6"}}},
                {"cells": ["a-new-one", null, "1s", null], "object": {"metadata": {"namespace": "lake", "resourceVersion": "7"}}}],
        }))
        .unwrap();
        let text = |wide, with_namespace| {
            let shown = Shown::new(&table.column_definitions, wide, with_namespace);
            columns(&[vec![shown.header()], shown.rows(&table.rows)].concat())
        };
        insta::assert_snapshot!([text(false, false), text(true, true)].join("\n"));
    }
}
