//! Signals that ask a process to end, so that what it has made is taken back first.

use std::future::Future;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::exit::Passed;

/// A signal that asks a process to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Interruption {
    /// The terminal is gone.
    Hangup,
    /// Ctrl-C.
    Interrupt,
    /// Somebody has asked for it.
    Terminate,
}

impl Interruption {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }

    /// The end of a process with the exit code that shells give to who ends of this signal.
    pub fn end(self) -> Passed {
        Passed::signal(i32::from(self.number()))
    }
}

/// Waits for the next such signal. From the first call on none of them ends this process by itself.
///
/// # Errors
/// If signals cannot be listened for.
pub async fn interrupted() -> Result<Interruption> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let (mut hangup, mut interrupt, mut terminate) = (listen(SignalKind::hangup())?, listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    Ok(tokio::select! {
        _ = hangup.recv() => Interruption::Hangup,
        _ = interrupt.recv() => Interruption::Interrupt,
        _ = terminate.recv() => Interruption::Terminate,
    })
}

/// Does some work unless a signal asks to end.
///
/// # Errors
/// Those of the work; after a signal, a quiet end with its exit code.
pub async fn uninterrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        signal = interrupted() => Err(signal?.end().into()),
        done = work => done,
    }
}
