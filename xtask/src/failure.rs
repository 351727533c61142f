//! How a command ends: 0 done, 1 failed, 2 wrong use, or the code that a guest's command ended with.

use crate::cmd;
use crate::interrupt::{self, Interrupted};
use std::fmt;
use std::process::ExitCode;

/// The user asked for something that can't be: exit code 2. The text says what and what to do instead.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// End with this code. The message, if any, is printed as it is; everything else was printed already.
#[derive(Debug)]
pub struct Exit {
    pub code: u8,
    pub message: Option<String>,
}

impl Exit {
    pub fn silent(code: u8) -> Self {
        Self {
            code,
            message: None,
        }
    }

    pub fn with(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: Some(message.into()),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => f.write_str(message),
            None => write!(f, "exit code {}", self.code),
        }
    }
}

impl std::error::Error for Exit {}

/// Prints the error of a command, if there is one, and turns it into the process' exit code.
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if let Some(exit) = error.downcast_ref::<Exit>() {
        if let Some(message) = &exit.message {
            eprintln!("error: {message}");
        }
        return ExitCode::from(exit.code);
    }
    if interrupt::received().is_some() {
        // Whatever it was that failed, it failed because of this.
        eprintln!("error: {Interrupted}");
        return ExitCode::FAILURE;
    }
    let remedy = if cmd::is_full_disk(&error) {
        "; the disk is full: make room, or set MANYCORE_CACHE to a folder on another disk"
    } else {
        ""
    };
    eprintln!("error: {error:#}{remedy}");
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn codes_survive_added_context() {
        let usage = Err::<(), _>(Usage("no such kernel".into())).context("vm run");
        assert_eq!(
            format!("{:?}", exit_code(usage)),
            format!("{:?}", ExitCode::from(2))
        );
        let exit = Err::<(), _>(Exit::with(124, "timeout")).context("vm run");
        assert_eq!(
            format!("{:?}", exit_code(exit)),
            format!("{:?}", ExitCode::from(124))
        );
    }

    #[test]
    fn any_other_error_is_one() {
        let failed = Err(anyhow::anyhow!("broken"));
        assert_eq!(
            format!("{:?}", exit_code(failed)),
            format!("{:?}", ExitCode::from(1))
        );
    }
}
