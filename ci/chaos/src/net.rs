//! A network of its own: one namespace for each node, host and ZooKeeper server, and partitions.
//!
//! All namespaces hang on one bridge, which has a namespace too, so nothing appears outside. Each member
//! drops what comes from the members in its nftables set: one direction at a time.

use crate::wait::{Failure, Outcome, setup, setup_at};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Of all namespaces of this program; the process id follows.
const PREFIX: &str = "ukai-chaos-";
/// Where `ip netns` keeps them.
const NAMESPACES: &str = "/run/netns";
/// The namespace of the bridge.
const SWITCH: &str = "sw";

/// One namespace with an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Member(pub usize);

/// The network.
pub(crate) struct Net {
    prefix: String,
    names: Vec<String>,
    /// (from, to) pairs that are cut.
    cut: BTreeSet<(Member, Member)>,
    /// What the nftables sets hold.
    applied: BTreeSet<(Member, Member)>,
}

impl Net {
    /// Makes the namespaces, after removing those of runs that are dead.
    pub(crate) fn new(names: &[&str]) -> Outcome<Self> {
        remove_leftovers();
        let mut net = Self {
            prefix: format!("{PREFIX}{}-", std::process::id()),
            names: Vec::new(),
            cut: BTreeSet::new(),
            applied: BTreeSet::new(),
        };
        let switch = format!("{}{SWITCH}", net.prefix);
        run("ip", &["netns", "add", &switch], "")?;
        let batch = "link add br0 type bridge\nlink set br0 up\n";
        run("ip", &["-n", &switch, "-batch", "-"], batch)?;
        for name in names {
            let space = format!("{}{name}", net.prefix);
            net.names.push((*name).to_owned());
            let ip = net.ip(Member(net.names.len() - 1));
            run("ip", &["netns", "add", &space], "")?;
            let batch = format!(
                "link add {name} type veth peer name eth0 netns {space}\n\
                 link set {name} master br0\nlink set {name} up\n"
            );
            run("ip", &["-n", &switch, "-batch", "-"], &batch)?;
            let batch = format!("link set lo up\naddress add {ip}/24 dev eth0\nlink set eth0 up\n");
            run("ip", &["-n", &space, "-batch", "-"], &batch)?;
            let rules = "table inet chaos {\n set from { type ipv4_addr; }\n \
                         chain input { type filter hook input priority 0; ip saddr @from drop; }\n}\n";
            net.nft(Member(net.names.len() - 1), rules)?;
        }
        Ok(net)
    }

    /// Its address.
    #[must_use]
    pub(crate) fn ip(&self, member: Member) -> Ipv4Addr {
        let host = u8::try_from(member.0 + 1).unwrap_or(u8::MAX);
        Ipv4Addr::new(10, 77, 0, host)
    }

    /// Its name.
    #[must_use]
    pub(crate) fn name(&self, member: Member) -> &str {
        &self.names[member.0]
    }

    /// Everybody.
    pub(crate) fn members(&self) -> impl Iterator<Item = Member> + use<> {
        (0..self.names.len()).map(Member)
    }

    /// Moves the calling thread, and those that it starts later, into a member's namespace.
    pub(crate) fn enter(&self, member: Member) -> Outcome {
        let path = Path::new(NAMESPACES).join(format!("{}{}", self.prefix, self.name(member)));
        let file = File::open(&path).map_err(setup_at("open", &path))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(setup_at("enter", &path))
    }

    /// A program in a member's namespace, which dies with the thread that starts it.
    #[must_use]
    pub(crate) fn command(&self, member: Member, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec"])
            .arg(format!("{}{}", self.prefix, self.name(member)))
            .args(["setpriv", "--pdeathsig", "KILL"])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Nothing gets from the one to the other any more.
    pub(crate) fn cut(&mut self, pairs: impl IntoIterator<Item = (Member, Member)>) -> Outcome {
        self.cut.extend(pairs);
        self.apply()
    }

    /// Cuts of these pairs end.
    pub(crate) fn mend(&mut self, pairs: impl IntoIterator<Item = (Member, Member)>) -> Outcome {
        for pair in pairs {
            self.cut.remove(&pair);
        }
        self.apply()
    }

    fn apply(&mut self) -> Outcome {
        for to in self.members() {
            let of = |pairs: &BTreeSet<(Member, Member)>| -> BTreeSet<Member> {
                let into = pairs.iter().filter(|pair| pair.1 == to);
                into.map(|pair| pair.0).collect()
            };
            let wanted = of(&self.cut);
            if wanted == of(&self.applied) {
                continue;
            }
            let mut rules = "flush set inet chaos from\n".to_owned();
            for from in wanted {
                rules += &format!("add element inet chaos from {{ {} }}\n", self.ip(from));
            }
            self.nft(to, &rules)?;
        }
        self.applied.clone_from(&self.cut);
        Ok(())
    }

    fn nft(&self, member: Member, rules: &str) -> Outcome {
        let space = format!("{}{}", self.prefix, self.name(member));
        run("ip", &["netns", "exec", &space, "nft", "-f", "-"], rules)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let own = self.names.iter().map(String::as_str).chain([SWITCH]);
        for name in own {
            // What cannot be removed now is removed by the next run.
            let _ = run(
                "ip",
                &["netns", "del", &format!("{}{name}", self.prefix)],
                "",
            );
        }
    }
}

/// Every ordered pair between two groups.
#[must_use]
pub(crate) fn between(some: &[Member], others: &[Member]) -> Vec<(Member, Member)> {
    let mut pairs = Vec::new();
    for a in some {
        for b in others {
            if a != b {
                pairs.extend([(*a, *b), (*b, *a)]);
            }
        }
    }
    pairs
}

/// Namespaces whose owner was killed.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(NAMESPACES) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|s| s.split('-').next());
        if let Some(pid) = owner
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = run("ip", &["netns", "del", &name], "");
        }
    }
}

/// A command to its end, with text on its standard input.
fn run(program: &str, arguments: &[&str], input: &str) -> Outcome {
    let doing = || format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(setup(doing()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(setup(doing()))?;
    }
    let output = child.wait_with_output().map_err(setup(doing()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::Setup(format!("{}: {}", doing(), said.trim())))
}
