//! What a page tells its reader to type, as one script.

use std::fmt::Write as _;
use std::ops::Range;

use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};
use serde_json::Value;

/// Begins a comment (`<!-- test … -->`) that speaks to this test and not to readers.
const MARK: &str = "<!-- test";

/// Makes a page's commands and manifests one script for bash. In order:
///
/// - the commands of each `sh` block, and of each `run` of a GitHub workflow and `script` of a Tekton task in a `yaml` block;
/// - for each other `yaml` block with an object of Kubernetes, or with the `spec` of a KindCluster, the question whether the host's API server would
///   take it, and for any other YAML, whether the chart takes it for values;
/// - what a comment says: `<!-- test` and then lines of a script that readers need not see, or `<!-- test: skip` and why the next block is not for
///   this test.
///
/// # Errors
/// A block that is none of these, and a comment that is not understood.
pub fn script(name: &str, text: &str) -> Result<String, String> {
    let mut script = String::new();
    let mut skipped = false;
    for (item, place) in items(text) {
        let line = 1 + text[..place.start].matches('\n').count();
        let here = format!("{name}:{line}");
        let wrong = |what: &str| Err(format!("{here}: {what}"));
        match item {
            Item::Comment(comment) => match comment.strip_prefix(": skip ") {
                Some(why) if !why.trim().is_empty() => skipped = true,
                Some(_) => return wrong("it does not say why the block is skipped"),
                None if comment.starts_with('\n') => write_part(&mut script, &here, &comment),
                None => return wrong("a comment for the test is neither a script nor `: skip` with a reason"),
            },
            Item::Block { .. } if std::mem::take(&mut skipped) => {}
            Item::Block { language, code } => match language.as_str() {
                "sh" => write_part(&mut script, &here, &code),
                "yaml" => write_part(&mut script, &here, &manifest(&code).map_err(|what| format!("{here}: {what}"))?),
                "text" | "json" | "lua" | "promql" => {}
                _ => return wrong(&format!("a block in {language:?} is nothing that can be tried; the language of output is text")),
            },
        }
    }
    if skipped { Err(format!("{name}: the last skip skips nothing")) } else { Ok(script) }
}

/// What the script says before each part, so that a failure can be found.
fn write_part(script: &mut String, here: &str, code: &str) {
    let _ = writeln!(script, "echo '## {here}'\n{}", code.trim());
}

/// Of a page.
enum Item {
    Comment(String),
    Block { language: String, code: String },
}

fn items(text: &str) -> Vec<(Item, Range<usize>)> {
    let mut items = Vec::new();
    let (mut block, mut comment) = (None, String::new());
    for (event, place) in Parser::new(text).into_offset_iter() {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => block = Some((language.to_string(), String::new())),
            Event::Text(more) => {
                if let Some((_, code)) = &mut block {
                    code.push_str(&more);
                }
            }
            Event::End(TagEnd::CodeBlock) => {
                if let Some((language, code)) = block.take() {
                    items.push((Item::Block { language, code }, place));
                }
            }
            Event::Html(more) => comment.push_str(&more),
            Event::End(TagEnd::HtmlBlock) => {
                let whole = std::mem::take(&mut comment);
                if let Some(said) = whole.trim().strip_prefix(MARK).and_then(|said| said.strip_suffix("-->")) {
                    items.push((Item::Comment(said.to_owned()), place));
                }
            }
            _ => {}
        }
    }
    items
}

/// What to type to try a block of YAML.
fn manifest(code: &str) -> Result<String, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(code).map_err(|error| error.to_string())?;
    let mut commands = Vec::new();
    for document in &documents {
        if let Some(jobs) = document["jobs"].as_object() {
            let steps = jobs.values().filter_map(|job| job["steps"].as_array()).flatten();
            commands.extend(steps.filter_map(|step| step["run"].as_str()).map(str::to_owned));
        } else if let Some(steps) = document["spec"]["steps"].as_array() {
            commands.extend(steps.iter().filter_map(|step| step["script"].as_str()).map(|script| format!("bash -s <<'TASK'\n{script}\nTASK")));
        } else if document["apiVersion"].is_string() {
            commands.push(ask(document));
        } else if document["spec"].is_object() {
            let mut object = document.clone();
            object["apiVersion"] = "nestling.dev/v1alpha1".into();
            object["kind"] = "KindCluster".into();
            object["metadata"]["name"] = "only-asked".into();
            commands.push(ask(&object));
        } else {
            commands.push(format!("helm template nestling charts/nestling --kube-version 1.34.4 --values - > /dev/null <<'VALUES'\n{document}\nVALUES"));
        }
    }
    Ok(commands.join("\n"))
}

/// Asks the host's API server. JSON is YAML, and one line, which cannot be the end of the here-document.
fn ask(object: &Value) -> String {
    format!("kubectl create --dry-run=server --validate=strict -f - <<'OBJECT'\n{object}\nOBJECT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_one_script() {
        let page = "
# A page
```sh
kubectl get nodes
```
<!-- test
echo hidden
-->
<!-- an editor's note -->
```yaml
spec: {version: v1.34.4}
```
<!-- test: skip there is no such service -->
```sh
curl https://example.com
```
```yaml
on: push
jobs: {test: {steps: [{uses: actions/checkout@v4}, {run: kubectl apply -f x.yaml}]}}
```
```text
output
```
";
        let script = script("p.md", page).unwrap();
        assert_eq!(
            script,
            "echo '## p.md:3'\nkubectl get nodes\necho '## p.md:6'\necho hidden\necho '## p.md:10'\n\
             kubectl create --dry-run=server --validate=strict -f - <<'OBJECT'\n\
             {\"apiVersion\":\"nestling.dev/v1alpha1\",\"kind\":\"KindCluster\",\"metadata\":{\"name\":\"only-asked\"},\"spec\":{\"version\":\"v1.34.4\"}}\nOBJECT\n\
             echo '## p.md:17'\nkubectl apply -f x.yaml\n"
        );
    }

    #[test]
    fn what_cannot_be_tried_is_refused() {
        for page in ["```\nx\n```", "```yaml\na: {\n```", "<!-- test: skip -->\n```sh\nx\n```", "<!-- test: skip it is gone -->\n", "<!-- test: hop -->\n"] {
            assert!(script("p.md", page).is_err(), "{page}");
        }
    }
}
