//! What `completion` takes.

use clap::{Args, ValueEnum};

/// Arguments of `completion`.
#[derive(Args, Clone, Debug)]
pub struct CompletionArgs {
    /// For which shell, or for kubectl in any shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// What completes a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Shell {
    /// Source it: source <(nestling completion bash)
    Bash,
    /// Source it, or write it to _nestling in a directory of $fpath
    Zsh,
    /// Write it to ~/.config/fish/completions/nestling.fish
    Fish,
    /// Write it to kubectl_complete-nestling, executable, in a directory of $PATH
    Kubectl,
}

/// Arguments of the hidden verb that kubectl's completion calls.
#[derive(Args, Clone, Debug)]
pub struct CompleteArgs {
    /// The words so far; the last one is being typed.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}
