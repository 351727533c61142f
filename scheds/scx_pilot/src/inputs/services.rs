//! Services: groups of tasks, told apart by their cgroups, and how each is to be treated. Some are named on the command
//! line and stay; those of a policy file come and go with it.

use control_plane::policy::Policy;

use super::MAX_SERVICES;
use crate::policy::Class;

/// A group of tasks, and how they are to be treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    /// Its cgroup, as a path below the root of the hierarchy with a leading slash; what is below it belongs to it.
    pub cgroup: String,
    pub class: Class,
    /// By what its tasks' weights are multiplied, in percent, 1 to 10000.
    pub weight: u32,
}

/// Parses `NAME=CGROUP:CLASS[:WEIGHT]`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(word: &str) -> Result<Service, String> {
    const FORM: &str = "must look like NAME=/CGROUP:CLASS[:WEIGHT]";
    let (name, rest) = word.split_once('=').ok_or(FORM)?;
    let mut parts = rest.split(':');
    let cgroup = parts.next().unwrap_or_default().trim_end_matches('/');
    let class = match parts.next().ok_or(FORM)? {
        "latency" => Class::Latency,
        "normal" => Class::Normal,
        "batch" => Class::Batch,
        other => return Err(format!("{other} is no class: latency, normal or batch")),
    };
    let weight = match parts.next() {
        None => 100,
        Some(word) => word
            .parse()
            .ok()
            .filter(|weight| (1..=10_000).contains(weight))
            .ok_or_else(|| format!("{word} is no weight: 1 to 10000 percent"))?,
    };
    if name.is_empty() || !cgroup.starts_with('/') || parts.next().is_some() {
        return Err(FORM.to_string());
    }
    Ok(Service {
        name: name.to_string(),
        cgroup: cgroup.to_string(),
        class,
        weight,
    })
}

/// All services that are known now. Each has a number, which is its place on the [`super::Board`].
#[derive(Debug)]
pub(super) struct Directory {
    /// By number; those from `fixed.len()` on are the policy's, or were an earlier one's.
    names: Vec<String>,
    fixed: Vec<Service>,
    policy: Option<Policy>,
    /// By the index of the policy's service.
    numbers: Vec<Option<usize>>,
}

impl Directory {
    /// With services that stay, of which the first [`MAX_SERVICES`] count.
    pub(super) fn new(mut fixed: Vec<Service>) -> Self {
        fixed.truncate(MAX_SERVICES);
        Self {
            names: fixed.iter().map(|service| service.name.clone()).collect(),
            fixed,
            policy: None,
            numbers: Vec::new(),
        }
    }

    /// Takes the services of a policy in place of an earlier one's. A name that is known keeps its number; of several
    /// services of one name, each has its own.
    pub(super) fn follow(&mut self, policy: &Policy) {
        let wanted: Vec<&str> = policy
            .services
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        self.numbers = Vec::new();
        for name in &wanted {
            let is_free = |number: &usize| !self.numbers.contains(&Some(*number));
            let mut all = 0..self.names.len();
            let known = all.find(|number| self.names[*number] == *name && is_free(number));
            let number = known.or_else(|| {
                if self.names.len() < MAX_SERVICES {
                    self.names.push((*name).to_owned());
                    return Some(self.names.len() - 1);
                }
                let mut others = self.fixed.len()..MAX_SERVICES;
                let free = others.find(|number| {
                    is_free(number) && !wanted.contains(&self.names[*number].as_str())
                })?;
                (*name).clone_into(&mut self.names[free]);
                Some(free)
            });
            self.numbers.push(number);
        }
        self.policy = Some(policy.clone());
    }

    /// Number, class and weight in percent of each service, and the names of those that there is no room for.
    pub(super) fn treatments(&self) -> (Vec<(usize, Class, u32)>, Vec<&str>) {
        let fixed = self.fixed.iter().enumerate();
        let mut treatments: Vec<_> = fixed
            .map(|(number, service)| (number, service.class, service.weight))
            .collect();
        let mut without_room = Vec::new();
        let services = self.policy.iter().flat_map(|policy| &policy.services);
        for (service, number) in services.zip(&self.numbers) {
            match number {
                // One of the command line that has the same name stays as it is.
                Some(number) if *number < self.fixed.len() => {}
                Some(number) => {
                    treatments.push((*number, service.class, service.weight.unwrap_or(100)));
                }
                None => without_room.push(service.name.as_str()),
            }
        }
        (treatments, without_room)
    }

    pub(super) fn name_of(&self, number: usize) -> Option<&str> {
        self.names.get(number).map(String::as_str)
    }

    pub(super) fn number_of(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known == name)
    }

    /// The service to which a cgroup belongs: that of the nearest one above it, or of itself.
    pub(super) fn service_of(&self, cgroup: &str) -> Option<usize> {
        let mut path = cgroup.trim_end_matches('/');
        while !path.is_empty() {
            if let Some(number) = self.service_that_is(path) {
                return Some(number);
            }
            path = path.rsplit_once('/').map_or("", |(above, _)| above);
        }
        None
    }

    /// The service that this cgroup is, and not only belongs to.
    fn service_that_is(&self, cgroup: &str) -> Option<usize> {
        let fixed = self.fixed.iter();
        let fixed = fixed.clone().position(|service| service.cgroup == cgroup);
        fixed.or_else(|| {
            *self
                .numbers
                .get(self.policy.as_ref()?.service_of(cgroup)?)?
        })
    }

    /// The same, if it is the policy's.
    pub(super) fn policys_that_is(&self, cgroup: &str) -> Option<usize> {
        self.service_that_is(cgroup)
            .filter(|number| *number >= self.fixed.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn services_are_parsed_or_refused_with_the_reason() {
        assert_eq!(
            parse("web=/system.slice/web.service/:latency:300"),
            Ok(Service {
                name: "web".into(),
                cgroup: "/system.slice/web.service".into(),
                class: Class::Latency,
                weight: 300
            })
        );
        assert_eq!(parse("b=/b:batch").unwrap().weight, 100);
        assert!(parse("b=/b:fast").unwrap_err().contains("no class"));
        assert!(parse("b=/b:batch:0").unwrap_err().contains("no weight"));
        for wrong in [
            "",
            "b",
            "b=/b",
            "b=b:batch",
            "=/b:batch",
            "b=/b:batch:1:2",
            "b=/:batch",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    fn policy(text: &str) -> Policy {
        Policy::parse(Path::new("p.toml"), text).unwrap()
    }

    #[test]
    fn the_nearest_cgroup_above_counts() {
        let services = ["a=/a:batch", "b=/a/b:latency"].map(|word| parse(word).unwrap());
        let mut directory = Directory::new(services.to_vec());
        let check = |directory: &Directory, wanted: &[(&str, Option<usize>)]| {
            for (cgroup, number) in wanted {
                assert_eq!(directory.service_of(cgroup), *number, "{cgroup}");
            }
        };
        let fixed = [
            ("/a", Some(0)),
            ("/a/c", Some(0)),
            ("/a/b/c", Some(1)),
            ("/ab", None),
            ("/", None),
            ("", None),
        ];
        check(&directory, &fixed);
        directory.follow(&policy(
            "[[service]]\ncgroup = \"/web/*\"\n[[service]]\ncgroup = \"/a/b/c\"\n[[service]]\ncgroup = \"/a\"\n",
        ));
        check(&directory, &[("/a", Some(0)), ("/a/c", Some(0))]);
        check(&directory, &[("/web/x/y", Some(2)), ("/web", None)]);
        check(&directory, &[("/a/b/c/d", Some(3)), ("/a/b/d", Some(1))]);
        // Another policy: what only the first one knew is forgotten.
        directory.follow(&policy("[[service]]\ncgroup = \"/ab\"\n"));
        check(&directory, &fixed[..3]);
        check(&directory, &[("/web/x/y", None), ("/a/b/c/d", Some(1))]);
        assert!(directory.service_of("/ab").is_some());
    }

    #[test]
    fn services_of_one_name_are_told_apart() {
        let mut directory = Directory::new(Vec::new());
        let text = "[[service]]\ncgroup = \"/a\"\nname = \"x\"\nclass = \"batch\"\n\
                    [[service]]\ncgroup = \"/b\"\nname = \"x\"\nclass = \"latency\"\n";
        for _ in 0..2 {
            directory.follow(&policy(text));
            let [a, b] = ["/a", "/b"].map(|cgroup| directory.service_of(cgroup).unwrap());
            assert_eq!(
                directory.treatments().0,
                [(a, Class::Batch, 100), (b, Class::Latency, 100)]
            );
        }
        assert_eq!(directory.names.len(), 2);
    }

    #[test]
    fn names_keep_their_numbers_and_give_them_back_when_there_is_no_room() {
        let many = |names: std::ops::Range<usize>| {
            let text: Vec<String> = names
                .map(|n| format!("[[service]]\ncgroup = \"/{n}\"\nname = \"s{n}\"\nweight = {n}\n"))
                .collect();
            policy(&text.concat())
        };
        let mut directory = Directory::new(vec![parse("web=/web:latency:300").unwrap()]);
        directory.follow(&many(1..MAX_SERVICES));
        let first = directory.number_of("s5");
        assert_eq!(directory.treatments().0.len(), MAX_SERVICES);
        assert!(directory.treatments().1.is_empty());
        // One too many, and all but that one have kept or found a place.
        directory.follow(&many(5..5 + MAX_SERVICES));
        assert_eq!(directory.number_of("s5"), first);
        let (treatments, without_room) = directory.treatments();
        assert_eq!(without_room, [format!("s{}", 4 + MAX_SERVICES)]);
        assert_eq!(treatments[0], (0, Class::Latency, 300));
        let mut numbers: Vec<usize> = treatments.iter().map(|one| one.0).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..MAX_SERVICES).collect::<Vec<_>>());
        let s70 = directory.number_of("s67").unwrap();
        assert_eq!(directory.service_of("/67/below"), Some(s70));
        assert!(treatments.contains(&(s70, Class::Normal, 67)));
    }
}
