//! `nestling completion`, and what kubectl asks while a line is typed.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use clap::{Arg, Command, CommandFactory};
use kube::ResourceExt;
use kube::api::ListParams;
use tokio::time::timeout;

use super::HostArgs;
use super::args::{CompleteArgs, CompletionArgs, Shell, UserVerbs};
use super::host::connect;
use super::select::api;

/// Who types waits no longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// kubectl runs this file of the `PATH` for `kubectl nestling …`.
const FOR_KUBECTL: &str = "#!/bin/sh\n# kubectl_complete-nestling: completes kubectl nestling.\nexec kubectl nestling __complete -- \"$@\"\n";

/// Tells the shell to offer nothing else, such as files (a directive of the library that kubectl's completion is made with).
const NOTHING_ELSE: &str = ":4";

/// Prints the script.
pub fn run(args: &CompletionArgs) -> Result<()> {
    Ok(std::io::stdout().write_all(&script(args.shell))?)
}

fn script(shell: Shell) -> Vec<u8> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
        Shell::Kubectl => return FOR_KUBECTL.as_bytes().to_vec(),
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut UserVerbs::command(), "nestling", &mut text);
    text
}

/// Prints what can stand in the place of the last word.
pub async fn complete(args: &CompleteArgs) -> Result<()> {
    let mut command = UserVerbs::command();
    command.build();
    let mut offers = match offers(&command, &args.words) {
        Offers::These(offers) => offers,
        Offers::Clusters(host) => timeout(PATIENCE, clusters(*host)).await.unwrap_or_default(),
    };
    let begun = args.words.last().map_or("", String::as_str);
    offers.retain(|offer| offer.starts_with(begun));
    offers.push(NOTHING_ELSE.to_owned());
    Ok(writeln!(std::io::stdout(), "{}", offers.join("\n"))?)
}

/// Names of the clusters that the user can see; none if they cannot be had.
async fn clusters(args: HostArgs) -> Vec<String> {
    let Ok(host) = connect(args).await else { return vec![] };
    let listed = api(&host).list_metadata(&ListParams::default()).await;
    listed.map(|list| list.items.iter().map(ResourceExt::name_any).collect()).unwrap_or_default()
}

/// What can stand in a place.
#[derive(Debug)]
enum Offers {
    /// One of these.
    These(Vec<String>),
    /// The name of a cluster, found with these flags.
    Clusters(Box<HostArgs>),
}

fn offers(root: &Command, words: &[String]) -> Offers {
    let (typed, before) = words.split_last().map_or(("", words), |(last, before)| (last.as_str(), before));
    let mut host = HostArgs::default();
    let mut verb = None;
    let mut words = before.iter();
    while let Some(word) = words.next() {
        let command = verb.unwrap_or(root);
        if let Some(flag) = flag(command, word) {
            if !takes_value(flag) || word.contains('=') {
                continue;
            }
            match (words.next(), flag.get_long()) {
                (None, _) => return Offers::These(values(flag)),
                (Some(value), Some("kubeconfig")) => host.kubeconfig = Some(value.into()),
                (Some(value), Some("context")) => host.context = Some(value.clone()),
                (Some(value), Some("namespace")) => host.namespace = Some(value.clone()),
                _ => {}
            }
        } else if verb.is_none() {
            verb = root.find_subcommand(word);
        }
    }
    let command = verb.unwrap_or(root);
    if typed.starts_with('-') {
        let flags = command.get_arguments().filter(|flag| !flag.is_hide_set()).filter_map(|flag| flag.get_long());
        return Offers::These(flags.map(|flag| format!("--{flag}")).collect());
    }
    if verb.is_none() {
        let verbs = root.get_subcommands().filter(|verb| !verb.is_hide_set());
        return Offers::These(verbs.map(|verb| verb.get_name().to_owned()).collect());
    }
    match command.get_positionals().next() {
        // A cluster that is to be made has no name yet.
        Some(names) if command.get_name() != "create" && names.get_value_names().is_some_and(|names| names.iter().any(|name| *name == "NAME")) => {
            Offers::Clusters(Box::new(host))
        }
        Some(other) => Offers::These(values(other)),
        None => Offers::These(vec![]),
    }
}

/// The flag that a word is, such as `-n` or `--namespace=marsh`.
fn flag<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let long = word.strip_prefix("--").map(|word| word.split_once('=').map_or(word, |(name, _)| name));
    let short = word.strip_prefix('-').and_then(|word| word.chars().next());
    command.get_arguments().find(|arg| match long {
        Some(long) => arg.get_long() == Some(long),
        None => short.is_some() && arg.get_short() == short,
    })
}

/// Whether the next word is the flag's value.
fn takes_value(flag: &Arg) -> bool {
    flag.get_num_args().is_some_and(|number| number.min_values() > 0)
}

fn values(arg: &Arg) -> Vec<String> {
    arg.get_possible_values().iter().filter(|value| !value.is_hide_set()).map(|value| value.get_name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(words: &[&str]) -> String {
        let mut command = UserVerbs::command();
        command.build();
        match offers(&command, &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()) {
            Offers::These(offers) => offers.join(" "),
            Offers::Clusters(host) => format!("clusters in {:?} {:?}", host.namespace, host.context),
        }
    }

    #[test]
    fn what_is_offered() {
        assert!(offered(&[""]).starts_with("create get describe") && !offered(&[""]).contains("__complete"));
        assert_eq!(offered(&["get", "-o", ""]), "wide json yaml name");
        assert_eq!(offered(&["wait", "crane", "--for", "R"]), "Ready ControlPlaneReady Suspended");
        assert_eq!(offered(&["-n", "marsh", "delete", ""]), "clusters in Some(\"marsh\") None");
        assert_eq!(offered(&["delete", "--wait", "--context", "c", ""]), "clusters in None Some(\"c\")");
        assert_eq!(offered(&["create", ""]), "");
        assert_eq!(offered(&["completion", ""]), "bash zsh fish kubectl");
        assert!(offered(&["freeze", "--"]).contains("--wait") && offered(&["freeze", "--"]).contains("--namespace"));
    }

    #[test]
    fn every_shell_gets_a_script_of_all_verbs() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = String::from_utf8(script(shell)).unwrap();
            for verb in UserVerbs::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
                assert!(text.contains(verb.get_name()), "{shell:?} {}", verb.get_name());
            }
        }
    }
}
