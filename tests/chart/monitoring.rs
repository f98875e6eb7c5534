//! Alerts and the dashboard ask for nothing that the operator does not say, and every alert has its section in `docs/operations.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nestling::operator::metrics::{Metrics, Snapshot};
use nestling_core::api::reasons::Reason;
use nestling_core::plan::milestones::{Creation, Failure};
use promql_parser::label::{MatchOp, Matchers};
use promql_parser::parser::{self, AggregateExpr, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;

use super::{helm, kind, objects, root};

/// Labels that Prometheus gives to all that it scrapes from one target.
const TARGET_LABELS: [&str; 2] = ["namespace", "service"];

/// Both, with selectors as the ServiceMonitor makes them.
const WANTED: [&str; 2] = ["--set", "metrics.serviceMonitor.create=true,metrics.prometheusRule.create=true,metrics.dashboard.create=true"];

/// The values of each label, by the name of a sample.
type Samples = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// What the operator says once everything has happened that can, for each reason that there is.
fn text() -> String {
    let metrics = Metrics::new();
    metrics.reconciled(Duration::from_millis(5));
    metrics.deleted_after(5.0);
    metrics.leads(true);
    for result in ["done", "cut short", "failed"] {
        metrics.step("CreatePod", result);
    }
    metrics.agent_request("report");
    for reason in ["Conflict", "NamespaceTerminating"] {
        metrics.reconcile_error(reason);
    }
    let mut now = Snapshot::new(1, 1, Duration::from_secs(1));
    for reason in Reason::ALL {
        metrics.reconcile_error(reason.as_str());
        metrics.ready(&Creation { total: 5.0, stages: vec![(*reason, 5.0)] });
        metrics.failed(Failure::Attempt(*reason));
        metrics.failed(Failure::Cluster(*reason));
        now.clusters.insert(reason.as_str().to_owned(), 1);
    }
    metrics.scrape(&now)
}

fn samples(text: &str) -> Samples {
    let mut samples = Samples::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
        let of = samples.entry(name.to_owned()).or_default();
        for (label, value) in labels.split(',').filter_map(|pair| pair.split_once('=')) {
            of.entry(label.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
        }
    }
    samples
}

/// Collects what is wrong with an expression.
struct Check<'a> {
    samples: &'a Samples,
    used: BTreeSet<String>,
    wrong: Vec<String>,
}

impl Check<'_> {
    fn selector(&mut self, selector: &VectorSelector) {
        let name = selector.name.clone().unwrap_or_default();
        let Some(labels) = self.samples.get(&name) else {
            self.wrong.push(format!("no metric {name:?}"));
            return;
        };
        let Matchers { matchers, or_matchers } = &selector.matchers;
        if !or_matchers.is_empty() || TARGET_LABELS.iter().any(|label| matchers.iter().all(|matcher| matcher.name != *label)) {
            self.wrong.push(format!("{name} of any operator"));
        }
        for matcher in matchers.iter().filter(|matcher| !TARGET_LABELS.contains(&matcher.name.as_str())) {
            let none = BTreeSet::new();
            let values = labels.get(&matcher.name).unwrap_or(&none);
            let found = match &matcher.op {
                MatchOp::Equal | MatchOp::NotEqual => values.contains(&matcher.value),
                MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').all(|value| values.contains(value)),
            };
            if !found {
                self.wrong.push(format!("{name} has no {}={:?}", matcher.name, matcher.value));
            }
        }
        self.used.insert(name);
    }

    /// A grouping is by labels that the metrics in it have.
    fn grouping(&mut self, aggregate: &AggregateExpr) {
        let mut inner = Check { samples: self.samples, used: BTreeSet::new(), wrong: vec![] };
        let _ = walk_expr(&mut inner, &aggregate.expr);
        for label in aggregate.modifier.iter().flat_map(|modifier| &modifier.labels().labels) {
            for name in &inner.used {
                if !self.samples[name].contains_key(label) {
                    self.wrong.push(format!("{name} has no label {label}"));
                }
            }
        }
    }
}

impl ExprVisitor for Check<'_> {
    type Error = ();

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, ()> {
        match expr {
            Expr::VectorSelector(selector) => self.selector(selector),
            Expr::MatrixSelector(matrix) => self.selector(&matrix.vs),
            Expr::Aggregate(aggregate) => self.grouping(aggregate),
            _ => {}
        }
        Ok(true)
    }
}

/// The metrics in an expression, and what is wrong with it.
fn check(samples: &Samples, expr: &str) -> (BTreeSet<String>, Vec<String>) {
    let mut check = Check { samples, used: BTreeSet::new(), wrong: vec![] };
    // Grafana's own variable; the others are values of labels.
    match parser::parse(&expr.replace("$__rate_interval", "5m")) {
        Ok(parsed) => {
            let _ = walk_expr(&mut check, &parsed);
        }
        Err(error) => check.wrong.push(error),
    }
    (check.used, check.wrong)
}

fn alerts(objects: &[Value]) -> Vec<Value> {
    let rules = kind(objects, "PrometheusRule").next().unwrap();
    rules["spec"]["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()).cloned().collect()
}

fn dashboard(objects: &[Value]) -> Value {
    let map = kind(objects, "ConfigMap").find(|map| map["metadata"]["name"] == "reed-nestling-dashboard").unwrap();
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    serde_json::from_str(map["data"]["nestling.json"].as_str().unwrap()).unwrap()
}

#[test]
fn what_does_not_fit_is_found() {
    let samples = samples(&text());
    let of = "namespace=\"a\",service=\"b\"";
    for (expr, expected) in [
        (format!("sum(nestling_leader{{{of}}}) == 1"), ""),
        (format!("sum by (le) (rate(nestling_stage_duration_seconds_bucket{{{of},stage=\"Queued\"}}[1h]))"), ""),
        (format!("sum(nestling_leader{{{of}}}"), "unclosed left parenthesis"),
        (format!("nestling_reconcile_errors{{{of}}}"), "no metric \"nestling_reconcile_errors\""),
        (format!("nestling_clusters{{{of},reason=\"NoSuch\"}}"), "nestling_clusters has no reason=\"NoSuch\""),
        (format!("nestling_clusters{{{of},reason!~\"Queued|NoSuch\"}}"), "nestling_clusters has no reason=\"Queued|NoSuch\""),
        (format!("sum by (step) (rate(nestling_clusters{{{of}}}[5m]))"), "nestling_clusters has no label step"),
        ("nestling_leader".to_owned(), "nestling_leader of any operator"),
    ] {
        assert_eq!(check(&samples, &expr).1.join("; "), expected, "{expr}");
    }
}

#[test]
fn alerts_ask_for_what_the_operator_says() {
    let Some(helm) = helm() else { return };
    let samples = samples(&text());
    let runbook = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/operations.md#");
    for alert in alerts(&objects(&helm, &WANTED)) {
        let name = alert["alert"].as_str().unwrap();
        let (used, wrong) = check(&samples, alert["expr"].as_str().unwrap());
        assert!(!used.is_empty() && wrong.is_empty(), "{name}: {wrong:?}");
        assert!(["critical", "warning", "info"].contains(&alert["labels"]["severity"].as_str().unwrap()), "{name}");
        for annotation in ["summary", "description"] {
            assert!(alert["annotations"][annotation].as_str().unwrap().ends_with(['.', '}']), "{name} {annotation}");
        }
        assert_eq!(alert["annotations"]["runbook_url"], format!("{runbook}{}", name.to_lowercase()));
    }
}

#[test]
fn the_dashboard_shows_all_that_the_operator_says() {
    let Some(helm) = helm() else { return };
    let samples = samples(&text());
    let dashboard = dashboard(&objects(&helm, &WANTED));
    assert!(dashboard["links"][0]["url"].as_str().unwrap().starts_with(env!("CARGO_PKG_REPOSITORY")));
    let mut shown = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let (used, wrong) = check(&samples, target["expr"].as_str().unwrap());
            assert!(!used.is_empty() && wrong.is_empty(), "{}: {wrong:?}", panel["title"]);
            shown.extend(used);
        }
    }
    for family in families(&text()).keys() {
        assert!(shown.iter().any(|name| name.starts_with(family.trim_end_matches("_total"))), "{family} is on no panel");
    }
}

#[test]
fn the_selector_is_the_owners_to_choose() {
    let Some(helm) = helm() else { return };
    let set = ["--set", "metrics.prometheusRule.create=true", "--set-string", "metrics.prometheusRule.selector=job=\"reed\""];
    for alert in alerts(&objects(&helm, &set)) {
        let expr = alert["expr"].as_str().unwrap();
        assert!(parser::parse(expr).is_ok() && expr.contains("{job=\"reed\"") && !expr.contains("namespace"), "{expr}");
    }
}

fn page() -> String {
    std::fs::read_to_string(root().join("docs/operations.md")).unwrap()
}

#[test]
fn every_alert_has_a_section_and_every_section_an_alert() {
    let Some(helm) = helm() else { return };
    let page = page();
    let (_, sections) = page.split_once("\n## Alerts\n").unwrap();
    let sections: Vec<&str> = sections.split("\n## ").next().unwrap().lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let alerts = alerts(&objects(&helm, &WANTED));
    assert_eq!(sections, alerts.iter().map(|alert| alert["alert"].as_str().unwrap()).collect::<Vec<_>>());
}

/// Type and labels of each metric.
fn families(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let samples = samples(text);
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let family = |(name, type_): (&str, &str)| {
        let (name, sample) = match type_ {
            "counter" => (format!("{name}_total"), format!("{name}_total")),
            "histogram" => (name.to_owned(), format!("{name}_count")),
            _ => (name.to_owned(), name.to_owned()),
        };
        let labels = samples[&sample].keys().cloned().collect();
        (name, (type_.to_owned(), labels))
    };
    types.map(family).collect()
}

#[test]
fn every_metric_is_explained() {
    let page = page();
    let code = |cell: &str| cell.split(',').map(|word| word.trim().trim_matches('`').to_owned()).filter(|word| !word.is_empty()).collect::<BTreeSet<_>>();
    let rows = page.lines().filter(|line| line.starts_with("| `nestling_")).map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), code(cells[3])))
    });
    assert_eq!(rows.collect::<BTreeMap<_, _>>(), families(&text()));
}
