//! Entries of a kubeconfig: put there, found again, taken away. Pure. Works on plain values, so that nothing is lost of what others have written.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Name of the extension that marks our entries. kubectl keeps extensions when it writes a kubeconfig.
pub const EXTENSION: &str = "nestling.dev";

/// The lists of a kubeconfig, and the key under which an entry of each holds its content.
const LISTS: [(&str, &str); 3] = [("clusters", "cluster"), ("users", "user"), ("contexts", "context")];

/// What marks an entry as ours.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// UID of the KindCluster.
    #[serde(rename = "clusterUID")]
    pub cluster_uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Context of its host cluster; none where this program ran in a pod of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_context: Option<String>,
}

impl Owner {
    /// Whether both mean one KindCluster, be it that it was deleted and made anew.
    pub fn is_same(&self, other: &Self) -> bool {
        self.cluster_uid == other.cluster_uid || (&self.namespace, &self.name, &self.host_context) == (&other.namespace, &other.name, &other.host_context)
    }
}

/// Why an entry cannot be put.
#[derive(Debug, Eq, PartialEq)]
pub enum Refusal {
    /// The file is no kubeconfig.
    NotAKubeconfig,
    /// There is such an entry, and somebody else made it; the owner, if it is that of another KindCluster.
    Taken(Option<Box<Owner>>),
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAKubeconfig => formatter.write_str("it is no kubeconfig"),
            Self::Taken(None) => formatter.write_str("it was not made by this program"),
            Self::Taken(Some(owner)) => write!(formatter, "it belongs to KindCluster {}/{}", owner.namespace, owner.name),
        }
    }
}

/// The owner on an entry of a list, such as `kind-crane` of `contexts`; `None` if it is not ours.
pub fn owner_of(entry: &Value, key: &str) -> Option<Owner> {
    let extensions = entry[key]["extensions"].as_array()?;
    let ours = extensions.iter().find(|extension| extension["name"] == EXTENSION)?;
    serde_json::from_value(ours["extension"].clone()).ok()
}

fn find<'a>(config: &'a Value, list: &str, name: &str) -> Option<&'a Value> {
    config[list].as_array()?.iter().find(|entry| entry["name"] == name)
}

/// Whether entries of this name may be put, given everything that kubectl reads.
pub fn may_put<'a>(configs: impl IntoIterator<Item = &'a Value>, context: &str, owner: &Owner) -> Result<(), Refusal> {
    for config in configs {
        for (list, key) in LISTS {
            let Some(entry) = find(config, list, context) else { continue };
            match owner_of(entry, key) {
                Some(found) if found.is_same(owner) => {}
                other => return Err(Refusal::Taken(other.map(Box::new))),
            }
        }
    }
    Ok(())
}

/// Whether there is a context of this KindCluster under this name.
pub fn has(config: &Value, context: &str, owner: &Owner) -> bool {
    find(config, "contexts", context).and_then(|entry| owner_of(entry, "context")).is_some_and(|found| found.is_same(owner))
}

/// Puts the one context of a published kubeconfig under this name, with its cluster and user. What the user has added to an entry of ours, such as a
/// namespace, stays.
pub fn put(config: &mut Value, published: &Value, context: &str, owner: &Owner) -> Result<(), Refusal> {
    if config.is_null() {
        *config = json!({"apiVersion": "v1", "kind": "Config"});
    }
    may_put([&*config], context, owner)?;
    let current = published["current-context"].as_str().unwrap_or_default();
    let from = &find(published, "contexts", current).ok_or(Refusal::NotAKubeconfig)?["context"];
    let named = |list: &str, key: &str| find(published, list, from[key].as_str().unwrap_or_default()).map(|entry| entry[key].clone());
    let (cluster, user) = named("clusters", "cluster").zip(named("users", "user")).ok_or(Refusal::NotAKubeconfig)?;
    for ((list, key), content) in LISTS.into_iter().zip([cluster, user, json!({"cluster": context, "user": context})]) {
        let entries = entries(config, list).ok_or(Refusal::NotAKubeconfig)?;
        let index = entries.iter().position(|entry| entry["name"] == context).unwrap_or_else(|| {
            entries.push(json!({"name": context}));
            entries.len() - 1
        });
        let mut merged = entries[index][key].as_object().cloned().unwrap_or_default();
        merged.extend(content.as_object().cloned().unwrap_or_default());
        mark(&mut merged, owner);
        entries[index][key] = merged.into();
    }
    Ok(())
}

fn entries<'a>(config: &'a mut Value, list: &str) -> Option<&'a mut Vec<Value>> {
    let found = config.as_object_mut()?.entry(list).or_insert_with(|| json!([]));
    if found.is_null() {
        *found = json!([]);
    }
    found.as_array_mut()
}

fn mark(content: &mut Map<String, Value>, owner: &Owner) {
    let mut extensions = content.get("extensions").and_then(Value::as_array).cloned().unwrap_or_default();
    extensions.retain(|extension| extension["name"] != EXTENSION);
    extensions.push(json!({"name": EXTENSION, "extension": owner}));
    content.insert("extensions".to_owned(), extensions.into());
}

/// Makes this context the current one.
pub fn set_current(config: &mut Value, context: &str) {
    config["current-context"] = context.into();
}

/// Takes the entries away whose owner this is true for. Where the current context was among them, that of the host cluster becomes current, or none.
/// Returns the contexts that went.
pub fn remove(config: &mut Value, is_meant: impl Fn(&Owner) -> bool) -> Vec<String> {
    let mut gone = Vec::new();
    let mut host = None;
    for (list, key) in LISTS {
        let Some(entries) = config.get_mut(list).and_then(Value::as_array_mut) else { continue };
        entries.retain(|entry| {
            let Some(owner) = owner_of(entry, key).filter(|owner| is_meant(owner)) else { return true };
            if list == "contexts" {
                gone.push(entry["name"].as_str().unwrap_or_default().to_owned());
                host = owner.host_context;
            }
            false
        });
    }
    if config["current-context"].as_str().is_some_and(|current| gone.iter().any(|name| name == current)) {
        config["current-context"] = host.unwrap_or_default().into();
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str) -> Owner {
        Owner { cluster_uid: uid.into(), namespace: "marsh".into(), name: "crane".into(), host_context: Some("host".into()) }
    }

    fn published(server: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "kind-crane",
            "clusters": [{"name": "kind-crane", "cluster": {"server": server, "certificate-authority-data": "QQ=="}}],
            "users": [{"name": "kind-crane", "user": {"client-key-data": "QQ=="}}],
            "contexts": [{"name": "kind-crane", "context": {"cluster": "kind-crane", "user": "kind-crane"}}],
        })
    }

    /// A kubeconfig as others leave it, with what we know nothing of.
    fn others() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "host", "preferences": {"colors": true}, "future": {"kept": [1]},
            "clusters": [{"name": "host", "cluster": {"server": "https://host", "extensions": [{"name": "minikube", "extension": {"a": 1}}], "new": 1}}],
            "users": [{"name": "host", "user": {"exec": {"command": "login", "args": ["yes", "012"], "env": null}}}],
            "contexts": [{"name": "host", "context": {"cluster": "host", "user": "host"}, "more": "0x1"}],
        })
    }

    #[test]
    fn an_empty_file_and_one_of_others() {
        let mut empty = Value::Null;
        put(&mut empty, &published("https://a"), "kind-crane", &owner("u")).unwrap();
        insta::assert_snapshot!(serde_saphyr::to_string(&empty).unwrap());
        let mut config = others();
        put(&mut config, &published("https://a"), "kind-crane", &owner("u")).unwrap();
        assert_eq!(config["current-context"], "host");
        assert!(has(&config, "kind-crane", &owner("u")) && !has(&config, "host", &owner("u")));
        assert_eq!(remove(&mut config, |found| found.cluster_uid == "u"), ["kind-crane"]);
        assert_eq!(config, others());
    }

    #[test]
    fn what_the_user_added_to_our_entry_stays() {
        let mut config = others();
        put(&mut config, &published("https://a"), "crane", &owner("u")).unwrap();
        config["contexts"][1]["context"]["namespace"] = "web".into();
        config["clusters"][1]["cluster"]["proxy-url"] = "socks5://p".into();
        config["clusters"][1]["cluster"]["extensions"].as_array_mut().unwrap().push(json!({"name": "x", "extension": 1}));
        // Deleted and made anew: the same object for its user.
        put(&mut config, &published("https://b"), "crane", &owner("v")).unwrap();
        let (cluster, context) = (&config["clusters"][1]["cluster"], &config["contexts"][1]["context"]);
        assert_eq!((cluster["server"].as_str(), cluster["proxy-url"].as_str()), (Some("https://b"), Some("socks5://p")));
        assert_eq!((context["namespace"].as_str(), context["cluster"].as_str()), (Some("web"), Some("crane")));
        assert_eq!(cluster["extensions"].as_array().unwrap().len(), 2);
        assert_eq!(owner_of(&config["users"][1], "user").unwrap().cluster_uid, "v");
        assert_eq!(config["clusters"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn what_others_made_is_never_overwritten() {
        for list in ["clusters", "users", "contexts"] {
            let mut config = others();
            config[list][0]["name"] = "kind-crane".into();
            let before = config.clone();
            assert_eq!(put(&mut config, &published("https://a"), "kind-crane", &owner("u")), Err(Refusal::Taken(None)), "{list}");
            assert_eq!(config, before);
            assert_eq!(may_put([&Value::Null, &config], "kind-crane", &owner("u")), Err(Refusal::Taken(None)), "{list}");
        }
        let mut config = Value::Null;
        put(&mut config, &published("https://a"), "kind-crane", &Owner { namespace: "lake".into(), ..owner("w") }).unwrap();
        let refusal = put(&mut config, &published("https://a"), "kind-crane", &owner("u")).unwrap_err();
        assert_eq!(refusal.to_string(), "it belongs to KindCluster lake/crane");
        assert_eq!(remove(&mut config, |found| found.is_same(&owner("u"))), Vec::<String>::new());
    }

    #[test]
    fn the_hosts_context_becomes_current_again() {
        for (host, after) in [(Some("host".to_owned()), "host"), (None, "")] {
            let mut config = others();
            let owner = Owner { host_context: host, ..owner("u") };
            put(&mut config, &published("https://a"), "kind-crane", &owner).unwrap();
            set_current(&mut config, "kind-crane");
            remove(&mut config, |found| found.is_same(&owner));
            assert_eq!(config["current-context"], after);
        }
    }

    #[test]
    fn what_is_no_kubeconfig_is_left_alone() {
        for mut config in [json!("text"), json!([1]), json!({"contexts": "none"})] {
            let before = config.clone();
            assert_eq!(put(&mut config, &published("https://a"), "c", &owner("u")), Err(Refusal::NotAKubeconfig), "{before}");
            remove(&mut config, |_| true);
        }
        assert_eq!(put(&mut Value::Null, &json!({}), "c", &owner("u")), Err(Refusal::NotAKubeconfig));
    }
}
