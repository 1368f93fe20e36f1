//! What is complete, what is durable, and what a sync would make so.
//!
//! The records of one turn and the data writes that belong to them form a *group*; its log blocks go out
//! in one piece. Groups are numbered from 1; group 0 is everything that recovery found.
//!
//! - A write is answered when its data is written and the log blocks of its group *and of all earlier
//!   groups* are ([`Commit::log_done`]): a process that dies leaves no answered record behind a gap.
//! - A record is durable when its group's blocks and all earlier ones are ([`Commit::log_durable`]):
//!   either a sync covered them, or they were all written with dsync.
//! - Records and data up to [`Commit::flushed`] are durable.
//!
//! Groups written with dsync can only follow durable ones; once a group went out without, later ones do
//! too until a sync has caught up. So the log is always: flushed, then dsync, then plain.

use super::log::Marks;
use std::collections::VecDeque;

/// Number of a group.
pub(super) type GroupId = u64;

#[derive(Debug, Default)]
struct Group {
    /// Log writes under way.
    log_ios: u32,
    /// Data writes under way.
    data_ios: u32,
    /// Its blocks went out.
    sealed: bool,
    dsync: bool,
    /// It has data written without dsync.
    plain_data: bool,
    last_block: u64,
    /// Requests to tell when the log is done up to here.
    waiting: Vec<u64>,
    /// Earlier groups with data that failed, which this one's records tell: one entry for each write.
    failed: Vec<GroupId>,
}

/// A sync under way.
#[derive(Clone, Copy, Debug)]
struct Sync {
    covers: GroupId,
    covers_block: u64,
}

#[derive(Debug)]
pub(super) struct Commit {
    /// The last one is the group that records join now.
    groups: VecDeque<Group>,
    /// Number of the first of `groups`; all before are complete.
    base: GroupId,
    /// Last block of the complete groups.
    complete_block: u64,
    /// Groups whose log writes, and those of all before, are complete.
    pub(super) log_done: GroupId,
    /// Groups all of which is durable.
    pub(super) flushed: GroupId,
    /// Last block of them.
    pub(super) flushed_block: u64,
    /// First and last group above `flushed` whose blocks went out without dsync.
    plain: Option<(GroupId, GroupId)>,
    /// Highest group that somebody was promised, or asked to have, durable with its data.
    pub(super) claim: GroupId,
    /// The pending group must be durable as soon as it can be.
    pub(super) durable_wanted: bool,
    /// Ascending groups for which a sync was asked.
    requests: VecDeque<GroupId>,
    sync: Option<Sync>,
    /// Syncs begun and ended, to ask for "one that begins from now on".
    pub(super) syncs_begun: u64,
    pub(super) syncs_ended: u64,
    /// A sync with this number is wanted whatever the groups say.
    sync_wanted: u64,
    /// (group, flushed group that its blocks tell) not yet durable.
    markers: VecDeque<(GroupId, GroupId)>,
    /// A recovery is sure to learn that everything up to this group was flushed.
    pub(super) marker: GroupId,
    /// (group, complete group that its blocks tell) not yet written.
    written_markers: VecDeque<(GroupId, GroupId)>,
    /// A recovery after the death of the process is sure to learn that everything up to this group was
    /// written.
    pub(super) written_marker: GroupId,
}

impl Commit {
    /// All is durable up to `block`.
    pub(super) fn new(block: u64) -> Self {
        Self {
            groups: VecDeque::from([Group::default()]),
            base: 1,
            complete_block: block,
            log_done: 0,
            flushed: 0,
            flushed_block: block,
            plain: None,
            claim: 0,
            durable_wanted: false,
            requests: VecDeque::new(),
            sync: None,
            syncs_begun: 0,
            syncs_ended: 0,
            sync_wanted: 0,
            markers: VecDeque::new(),
            marker: 0,
            written_markers: VecDeque::new(),
            written_marker: 0,
        }
    }

    /// What the next blocks can tell.
    pub(super) fn marks(&self) -> Marks {
        Marks {
            flushed: self.flushed_block,
            written: self.complete_block,
        }
    }

    /// Groups whose records and data are written.
    pub(super) fn complete(&self) -> GroupId {
        self.base - 1
    }

    /// Blocks under way, or written, tell that everything up to this group was written.
    pub(super) fn written_marker_coming(&self) -> GroupId {
        self.written_markers
            .back()
            .map_or(self.written_marker, |(_, told)| *told)
    }

    /// The group that records join now.
    pub(super) fn pending(&self) -> GroupId {
        self.base + self.groups.len() as u64 - 1
    }

    fn group(&mut self, group: GroupId) -> &mut Group {
        let index = group.checked_sub(self.base).expect("an unfinished group");
        self.groups
            .get_mut(usize::try_from(index).expect("few groups"))
            .expect("a known group")
    }

    /// Everything before the pending group is durable or on its way with dsync.
    pub(super) fn can_dsync(&self) -> bool {
        self.plain.is_none()
    }

    /// A data write joins the pending group.
    pub(super) fn data_begins(&mut self, dsync: bool) -> GroupId {
        let group = self.pending();
        let pending = self.group(group);
        pending.data_ios += 1;
        pending.plain_data |= !dsync;
        group
    }

    pub(super) fn data_ends(&mut self, group: GroupId) {
        self.group(group).data_ios -= 1;
    }

    /// A data write of the group failed, and records of the pending group say so. Until those are
    /// written, it counts as under way: nothing may tell that the group is complete, or flushed, while
    /// a recovery could still take what was to be written for what is there.
    pub(super) fn data_fails(&mut self, group: GroupId) {
        let pending = self.pending();
        // A dsync of the group's own blocks would not cover the records.
        self.group(group).plain_data = true;
        if group == pending {
            self.data_ends(group);
        } else {
            self.group(pending).failed.push(group);
        }
    }

    /// Tell `request` when the log is done up to the pending group.
    pub(super) fn wait_log(&mut self, request: u64) {
        let pending = self.pending();
        self.group(pending).waiting.push(request);
    }

    /// The pending group goes out as `ios` writes ending with `last_block`; tells whether with dsync.
    pub(super) fn seal(&mut self, last_block: u64, ios: u32) -> (GroupId, bool) {
        let group = self.pending();
        let dsync = self.durable_wanted && self.can_dsync();
        if !dsync {
            let first = self.plain.map_or(group, |(first, _)| first);
            self.plain = Some((first, group));
            if self.durable_wanted {
                self.request(group);
            }
        }
        self.durable_wanted = false;
        self.markers.push_back((group, self.flushed));
        self.written_markers.push_back((group, self.complete()));
        let pending = self.group(group);
        pending.sealed = true;
        pending.dsync = dsync;
        pending.log_ios = ios;
        pending.last_block = last_block;
        self.groups.push_back(Group::default());
        (group, dsync)
    }

    pub(super) fn log_ends(&mut self, group: GroupId) {
        self.group(group).log_ios -= 1;
    }

    /// Moves the marks; requests whose log is now done are added to `told`.
    pub(super) fn advance(&mut self, told: &mut Vec<u64>) {
        // The log may be ahead of the data.
        loop {
            let next = self.log_done + 1;
            if next < self.base {
                self.log_done = self.base - 1;
                continue;
            }
            let group = self.group(next);
            if !group.sealed || group.log_ios > 0 {
                break;
            }
            told.append(&mut group.waiting);
            let failed = std::mem::take(&mut group.failed);
            self.log_done = next;
            for earlier in failed {
                self.data_ends(earlier);
            }
        }
        while let Some(group) = self.groups.front() {
            if !group.sealed || group.log_ios > 0 || group.data_ios > 0 {
                break;
            }
            self.complete_block = group.last_block;
            if group.dsync && !group.plain_data && self.flushed + 1 == self.base {
                self.flushed = self.base;
                self.flushed_block = group.last_block;
            }
            self.groups.pop_front();
            self.base += 1;
        }
        while self
            .written_markers
            .front()
            .is_some_and(|(group, _)| *group <= self.log_done)
        {
            let (_, told) = self.written_markers.pop_front().expect("looked at");
            self.written_marker = told;
        }
        self.move_marker();
    }

    fn move_marker(&mut self) {
        let durable = self.log_durable();
        while self
            .markers
            .front()
            .is_some_and(|(group, _)| *group <= durable)
        {
            let (_, flushed) = self.markers.pop_front().expect("looked at");
            self.marker = self.marker.max(flushed);
        }
    }

    /// Records up to this group are durable.
    pub(super) fn log_durable(&self) -> GroupId {
        let written = self
            .plain
            .map_or(self.log_done, |(first, _)| self.log_done.min(first - 1));
        self.flushed.max(written)
    }

    /// A superblock that tells of `flushed` is durable.
    pub(super) fn marker_written(&mut self, flushed: GroupId) {
        self.marker = self.marker.max(flushed);
    }

    /// Ask for a sync that covers `group`, data and all.
    pub(super) fn request(&mut self, group: GroupId) {
        // In its place: an earlier group may be complete long before one that was asked for first.
        let at = self.requests.partition_point(|asked| *asked < group);
        if group > self.flushed && self.requests.get(at) != Some(&group) {
            self.requests.insert(at, group);
        }
    }

    /// Ask for a sync that begins after now; its number.
    pub(super) fn request_next(&mut self) -> u64 {
        self.sync_wanted = self.syncs_begun + 1;
        self.sync_wanted
    }

    /// Should a sync begin? If so it has begun.
    pub(super) fn begin_sync(&mut self) -> bool {
        while self
            .requests
            .front()
            .is_some_and(|group| *group <= self.flushed)
        {
            self.requests.pop_front();
        }
        let complete = self.complete();
        let asked = self
            .requests
            .front()
            .is_some_and(|group| *group <= complete);
        if self.sync.is_some() || !(asked || self.sync_wanted > self.syncs_begun) {
            return false;
        }
        self.syncs_begun += 1;
        self.sync = Some(Sync {
            covers: complete,
            covers_block: self.complete_block,
        });
        true
    }

    /// The sync succeeded.
    pub(super) fn end_sync(&mut self) {
        let sync = self.sync.take().expect("a sync is under way");
        self.syncs_ended += 1;
        if sync.covers > self.flushed {
            self.flushed = sync.covers;
            self.flushed_block = sync.covers_block;
        }
        self.plain = self
            .plain
            .filter(|(_, last)| *last > self.flushed)
            .map(|(first, last)| (first.max(self.flushed + 1), last));
        self.move_marker();
    }

    /// Nothing is under way and nothing waits to go out.
    pub(super) fn idle(&self) -> bool {
        self.groups.len() == 1 && self.sync.is_none() && self.groups[0].data_ios == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advance(commit: &mut Commit) -> Vec<u64> {
        let mut told = Vec::new();
        commit.advance(&mut told);
        told
    }

    #[test]
    fn answers_wait_for_earlier_log_blocks_but_not_for_earlier_data() {
        let mut commit = Commit::new(5);
        let first = commit.data_begins(false);
        commit.wait_log(11);
        commit.seal(6, 1);
        commit.wait_log(22);
        let (second, _) = commit.seal(7, 1);
        commit.log_ends(second);
        assert_eq!(advance(&mut commit), Vec::<u64>::new());
        commit.log_ends(first);
        assert_eq!(advance(&mut commit), [11, 22]);
        commit.request(second);
        assert!(
            !commit.begin_sync(),
            "the first group's data is still under way"
        );
        commit.data_ends(first);
        advance(&mut commit);
        assert!(commit.begin_sync());
        commit.end_sync();
        assert_eq!((commit.flushed, commit.flushed_block), (second, 7));
    }

    #[test]
    fn dsync_follows_only_what_is_durable() {
        let mut commit = Commit::new(1);
        commit.durable_wanted = true;
        let (first, dsync) = commit.seal(2, 1);
        assert!(dsync);
        let (second, dsync) = commit.seal(3, 1);
        assert!(!dsync, "nobody asked");
        commit.durable_wanted = true;
        let (third, dsync) = commit.seal(4, 1);
        assert!(!dsync, "the second group is not durable");
        for group in [first, second, third] {
            commit.log_ends(group);
        }
        advance(&mut commit);
        assert_eq!((commit.flushed, commit.log_durable()), (first, first));
        assert!(commit.begin_sync(), "the third group asked");
        commit.end_sync();
        assert_eq!((commit.log_durable(), commit.can_dsync()), (third, true));
    }
}
