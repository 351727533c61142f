//! The options by which a daemon takes a policy.

use std::path::PathBuf;

use super::{DEFAULT_JOURNAL, Error, Policy};

/// Options for a policy; flatten them into a daemon's own.
#[derive(clap::Args, Clone, Debug)]
pub struct PolicyOpts {
    /// Apply this policy to cgroups while scheduling, and undo it at the end; SIGHUP reads the file again
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Where to note what was there before, for `manycore policy restore` after a crash
    #[arg(long, value_name = "FILE", default_value = DEFAULT_JOURNAL)]
    pub policy_journal: PathBuf,
}

impl PolicyOpts {
    /// Reads the policy, at the start or for [`Session::reload`]; `None` without one.
    ///
    /// # Errors
    /// [`Error::Mistakes`]
    pub fn read(&self) -> Result<Option<Policy>, Error> {
        let file = self.policy.as_deref();
        file.map(Policy::read).transpose().map_err(Error::Mistakes)
    }
}
