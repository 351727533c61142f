//! Which cgroups a service is: by path, glob, or the name of a systemd unit.

use glob::{MatchOptions, Pattern};

/// `*` and `?` stay within one part of a path; `**` doesn't.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// What a systemd unit that has a cgroup can be.
const UNIT_KINDS: &[&str] = &[".service", ".scope", ".slice"];
/// What alone is above the system's units. Below a service or a scope is what it makes itself: users can give the units of
/// their own managers, and the cgroups that are delegated to them, any name.
const ABOVE_UNITS: &str = ".slice";

/// Tells the cgroups of a service from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    pattern: Pattern,
    /// By the last part of the path only.
    by_unit: bool,
}

impl Matcher {
    /// By path from the cgroup root, as `/proc/PID/cgroup` shows it: `/system.slice/db.service`. May have `*`, `?` and
    /// `[...]`, which stay within one part of the path, and `**`, any number of parts.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn by_path(path: &str) -> Result<Self, String> {
        if !path.starts_with('/') {
            return Err(format!(
                "the cgroup {path:?} doesn't begin with /, the root of the cgroups"
            ));
        }
        let path = path.trim_end_matches('/');
        if path.is_empty() {
            return Err("the root cgroup can't be limited: name one below it".to_owned());
        }
        if path
            .split('/')
            .skip(1)
            .any(|part| matches!(part, "" | "." | ".."))
        {
            return Err(format!("the cgroup {path:?} has an empty part, . or .."));
        }
        Self::new(path, false)
    }

    /// By the name of a unit of the system's, in whatever slice: `db.service`, `web@*.service`.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn by_unit(unit: &str) -> Result<Self, String> {
        if unit.contains('/') {
            return Err(format!(
                "the unit {unit:?} has a /: use `cgroup` for a path"
            ));
        }
        if !UNIT_KINDS.iter().any(|kind| unit.ends_with(kind)) {
            return Err(format!(
                "the unit {unit:?} doesn't end with one of {}: other units have no cgroup",
                UNIT_KINDS.join(", ")
            ));
        }
        Self::new(unit, true)
    }

    fn new(text: &str, by_unit: bool) -> Result<Self, String> {
        let pattern =
            Pattern::new(text).map_err(|err| format!("the glob {text:?}: {}", err.msg))?;
        Ok(Self { pattern, by_unit })
    }

    /// Whether the cgroup of this path, `/a/b`, is meant. Those below it are not.
    pub fn matches(&self, path: &str) -> bool {
        if !self.by_unit {
            return self.pattern.matches_with(path, OPTIONS);
        }
        let (above, unit) = path.rsplit_once('/').unwrap_or(("", path));
        let mut above = above.split('/').filter(|part| !part.is_empty());
        self.pattern.matches_with(unit, OPTIONS) && above.all(|part| part.ends_with(ABOVE_UNITS))
    }

    /// Whether it names one cgroup, rather than a family of them.
    pub fn is_exact(&self) -> bool {
        !self.pattern.as_str().contains(['*', '?', '['])
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        self.pattern.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let one = Matcher::by_path("/system.slice/db.service/").unwrap();
        assert!(one.is_exact() && one.matches("/system.slice/db.service"));
        assert!(!one.matches("/system.slice/db.service/worker"));
        let star = Matcher::by_path("/tenants/*/web").unwrap();
        assert!(!star.is_exact() && star.matches("/tenants/a/web"));
        assert!(!star.matches("/tenants/a/b/web"));
        let deep = Matcher::by_path("/kubepods.slice/**/cri-*.scope").unwrap();
        assert!(deep.matches("/kubepods.slice/a/b/cri-1.scope"));
        assert!(deep.matches("/kubepods.slice/cri-1.scope"));
        assert!(!deep.matches("/kubepods.slice/a/cri-1.scope/x"));
        // systemd's own escapes are no escapes here.
        let escaped = Matcher::by_path(r"/system.slice/a\x2db.service").unwrap();
        assert!(escaped.matches(r"/system.slice/a\x2db.service"));
    }

    #[test]
    fn units() {
        let unit = Matcher::by_unit("web@*.service").unwrap();
        assert!(unit.matches("/system.slice/system-web.slice/web@1.service"));
        assert!(!unit.matches("/system.slice/web@1.service/sub"));
        let unit = Matcher::by_unit("db.service").unwrap();
        assert!(unit.matches("/db.service"));
        // What users have made, and may name as they like.
        let own = "/user.slice/user-1000.slice/user@1000.service/app.slice/db.service";
        assert!(!unit.matches(own));
        assert!(!unit.matches("/system.slice/container.service/db.service"));
        let session = Matcher::by_unit("session-*.scope").unwrap();
        assert!(session.matches("/user.slice/user-1000.slice/session-3.scope"));
    }

    #[test]
    fn wrong_ones() {
        for wrong in ["", "a", "/", "//", "/a//b", "/a/../b", "/a/[", "/a***"] {
            assert!(Matcher::by_path(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "db", "a/b.service", "db.timer"] {
            assert!(Matcher::by_unit(wrong).is_err(), "{wrong}");
        }
    }
}
