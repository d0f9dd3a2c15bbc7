//! Elections as soon as the leader is said to be gone: row 56 of the list of faults in the design of replication, on cores that share one clock. Frames take a
//! fraction of a millisecond, writes a little longer, and whoever is told that somebody is gone hears it about when a kernel would say so.
//!
//! Two bugs are planted in it, and must be found.
use raft::eraftpb::{ConfState, HardState};
use std::collections::{BTreeMap, BTreeSet};
use sternpost_engine::base::rng::Rng;
use sternpost_replication::raft::{
    Core, CoreOptions, CoreStart, Frame, Input, Output, Planted, PlantedBug, Proposal,
};

const TICK_US: u64 = 10_000;
/// Without word of a leader somebody campaigns behind this.
const ELECTION_US: u64 = 150_000;
/// Far longer than anything takes.
const PATIENCE_US: u64 = 5_000_000;
const SEEDS: u64 = 200;

enum Event {
    Tick,
    Frame(Box<Frame>),
    Durable(u64),
    Absent(u64),
}

/// Members 1 to n of a group.
struct Group {
    rng: Rng,
    now_us: u64,
    /// By time and number: whose, and what.
    events: BTreeMap<(u64, u64), (u64, Event)>,
    events_count: u64,
    /// None for one that is killed.
    cores: BTreeMap<u64, Option<Core>>,
    /// Until when the disk of each is busy.
    disk_until_us: BTreeMap<u64, u64>,
    /// Pairs that do not hear each other.
    apart: BTreeSet<(u64, u64)>,
}

impl Group {
    fn new(count: u64, seed: u64, quick_elections: bool, bug: Option<PlantedBug>) -> Self {
        let voters: Vec<u64> = (1..=count).collect();
        let core = |member: u64| {
            let options = CoreOptions {
                member,
                boot: member,
                seed,
                heartbeat_ticks: 3,
                election_ticks: (ELECTION_US / TICK_US) as usize,
                tick_us: TICK_US,
                request_timeout_us: 60_000_000,
                stall_us: ELECTION_US,
                quick_elections,
                cache_bytes_max: 1 << 20,
                command_id: |command| Some(u64::from_le_bytes(command.get(..8)?.try_into().ok()?)),
                planted: Planted::new(bug),
            };
            let start = CoreStart {
                hard_state: HardState { term: 1, vote: 0, commit: 1 },
                configuration: ConfState { voters: voters.clone(), ..ConfState::default() },
                applied: 1,
                base: (1, 1),
                terms: Vec::new(),
                tail: Vec::new(),
            };
            Core::new(options, start).unwrap()
        };
        let mut group = Self {
            rng: Rng::new(seed),
            now_us: 0,
            events: BTreeMap::new(),
            events_count: 0,
            cores: voters.iter().map(|member| (*member, Some(core(*member)))).collect(),
            disk_until_us: BTreeMap::new(),
            apart: BTreeSet::new(),
        };
        for member in voters {
            let phase_us = group.rng.below(TICK_US);
            group.after(phase_us, member, Event::Tick);
        }
        group
    }

    fn after(&mut self, delay_us: u64, member: u64, event: Event) {
        self.events_count += 1;
        self.events.insert((self.now_us + delay_us, self.events_count), (member, event));
    }

    fn input(&mut self, member: u64, input: Input) {
        let mut outputs = Vec::new();
        let Some(Some(core)) = self.cores.get_mut(&member) else { return };
        core.handle(self.now_us, input, &mut outputs);
        for output in outputs {
            match output {
                Output::Send(frame) => {
                    let delay_us = 100 + self.rng.below(300);
                    if !self.apart.contains(&(member, frame.to)) {
                        self.after(delay_us, frame.to, Event::Frame(Box::new(frame)));
                    }
                }
                Output::Persist { number, .. } => {
                    let write_us = 300 + self.rng.below(1_000);
                    let until_us = self.disk_until_us.entry(member).or_default();
                    *until_us = (*until_us).max(self.now_us) + write_us;
                    let delay_us = *until_us - self.now_us;
                    self.after(delay_us, member, Event::Durable(number));
                }
                Output::Apply(entries) => {
                    let index = entries.last().expect("no empty hand-over").index;
                    self.input(member, Input::Applied { index, change: None });
                }
                _ => {}
            }
        }
    }

    /// The next thing that happens.
    fn step(&mut self) {
        let ((at_us, _), (member, event)) = self.events.pop_first().expect("clocks tick");
        self.now_us = at_us;
        let input = match event {
            Event::Tick => {
                self.after(TICK_US, member, Event::Tick);
                Input::Tick { write_age_us: 0 }
            }
            Event::Frame(frame) => Input::Frame(*frame),
            Event::Durable(number) => Input::Durable { number },
            Event::Absent(id) => Input::Absent { id },
        };
        self.input(member, input);
    }

    fn run_for(&mut self, us: u64) {
        let until_us = self.now_us + us;
        while self.now_us < until_us {
            self.step();
        }
    }

    fn running(&self) -> impl Iterator<Item = (u64, &Core)> {
        self.cores.iter().filter_map(|(member, core)| Some((*member, core.as_ref()?)))
    }

    /// (leader, term), if everybody who runs has the same and the leader has proved it.
    fn led(&self) -> Option<(u64, u64)> {
        let mut known = self.running().map(|(_, core)| core.status());
        let first = known.next()?.role;
        let is_same =
            known.all(|status| (status.role.leader, status.role.term) == (first.leader, first.term));
        let is_proved = self
            .running()
            .any(|(member, core)| member == first.leader && core.status().proved_term == Some(first.term));
        (is_same && is_proved).then_some((first.leader, first.term))
    }

    /// Waits until somebody leads; who, and in which term.
    fn wait(&mut self) -> Result<(u64, u64), String> {
        let until_us = self.now_us + PATIENCE_US;
        while self.now_us < until_us {
            if let Some(led) = self.led() {
                return Ok(led);
            }
            self.step();
        }
        Err("nobody leads".into())
    }

    /// With a leader, and some time behind its election.
    fn settled(
        count: u64,
        seed: u64,
        quick: bool,
        bug: Option<PlantedBug>,
    ) -> Result<(Self, u64, u64), String> {
        let mut group = Self::new(count, seed, quick, bug);
        group.wait()?;
        let while_us = 300_000 + group.rng.below(100_000);
        group.run_for(while_us);
        let (leader, term) = group.wait()?;
        Ok((group, leader, term))
    }

    /// This one's process ends; or only looks like it, to `to`. Each hears of it when its kernel says so and an attempt to connect has failed.
    fn seems_gone(&mut self, id: u64, to: impl IntoIterator<Item = u64>) {
        for member in to {
            let delay_us = 100 + self.rng.below(1_400);
            self.after(delay_us, member, Event::Absent(id));
        }
    }

    fn others(&self, id: u64) -> Vec<u64> {
        self.cores.keys().copied().filter(|member| *member != id).collect()
    }

    fn set_apart(&mut self, one: u64, two: u64, is_apart: bool) {
        for pair in [(one, two), (two, one)] {
            if is_apart {
                self.apart.insert(pair)
            } else {
                self.apart.remove(&pair)
            };
        }
    }
}

/// The leader's process is killed: one election, and how long nobody led.
fn killed(count: u64, seed: u64, quick: bool, bug: Option<PlantedBug>) -> Result<u64, String> {
    let (mut group, leader, term) = Group::settled(count, seed, quick, bug)?;
    let others = group.others(leader);
    let begun_us = group.now_us;
    group.cores.insert(leader, None);
    group.seems_gone(leader, others);
    let (_, new_term) = group.wait()?;
    if new_term != term + 1 {
        return Err(format!("{} elections for one leader", new_term - term));
    }
    Ok(group.now_us - begun_us)
}

/// A leader that lives seems gone to one follower, and to that alone.
fn seems_gone_to_one(count: u64, seed: u64, bug: Option<PlantedBug>) -> Result<(), String> {
    let (mut group, leader, term) = Group::settled(count, seed, true, bug)?;
    let others = group.others(leader);
    let told = others[(seed % others.len() as u64) as usize];
    // For a moment; it hears the leader again with the second heartbeat.
    group.seems_gone(leader, [told]);
    group.run_for(80_000);
    if group.led() != Some((leader, term)) {
        return Err(format!("{:?} behind a moment, {leader} led in {term}", group.led()));
    }
    // For a second, in which the two do not hear each other, and every attempt to connect fails.
    group.set_apart(leader, told, true);
    for _ in 0..20 {
        group.seems_gone(leader, [told]);
        group.run_for(50_000);
    }
    group.set_apart(leader, told, false);
    group.run_for(300_000);
    match group.wait()? {
        led if led == (leader, term) => Ok(()),
        led => Err(format!("{led:?} behind a second, {leader} led in {term}")),
    }
}

/// A leader that lives seems gone to all: at most one election, and then there is peace.
fn seems_gone_to_all(count: u64, seed: u64, bug: Option<PlantedBug>) -> Result<(), String> {
    let (mut group, leader, term) = Group::settled(count, seed, true, bug)?;
    let others = group.others(leader);
    group.seems_gone(leader, others);
    group.run_for(ELECTION_US);
    let led = group.led().ok_or("nobody leads one election timeout later")?;
    if led != (leader, term) && led.1 != term + 1 {
        return Err(format!("{led:?}, {leader} led in {term}"));
    }
    group.run_for(2_000_000);
    match group.led() {
        later if later == Some(led) => Ok(()),
        later => Err(format!("{later:?} behind {led:?}")),
    }
}

/// The first one that `claim` finds wrong.
fn first_wrong<T>(claim: impl Fn(u64) -> Result<T, String>) -> Option<(u64, String)> {
    (0..SEEDS).find_map(|seed| Some((seed, claim(seed).err()?)))
}

#[test]
fn a_leader_that_is_killed_is_replaced_in_one_election_within_milliseconds() {
    for count in [3, 5] {
        let mut gaps_us: Vec<u64> = (0..SEEDS)
            .map(|seed| {
                killed(count, seed, true, None).unwrap_or_else(|what| panic!("{count}, seed {seed}: {what}"))
            })
            .collect();
        gaps_us.sort_unstable();
        let (median_us, most_us) = (gaps_us[gaps_us.len() / 2], gaps_us[gaps_us.len() - 1]);
        println!("{count} members: nobody led for {median_us} us, {most_us} at most");
        assert!(median_us < 10_000, "{median_us}");
        // Who has its turn and finds another one who was not told yet asks again a tick later.
        assert!(most_us < 30_000, "{most_us}");
    }
}

#[test]
fn without_the_option_it_takes_an_election_timeout() {
    for seed in 0..20 {
        // Somebody's timer may have run for a heartbeat when the leader dies.
        let gap_us = killed(3, seed, false, None).map_or(u64::MAX, |gap_us| gap_us);
        assert!(gap_us > ELECTION_US - 4 * TICK_US, "seed {seed}: {gap_us}");
    }
}

#[test]
fn a_leader_that_seems_gone_to_one_member_leads_on() {
    for count in [3, 5] {
        assert_eq!(first_wrong(|seed| seems_gone_to_one(count, seed, None)), None, "{count} members");
    }
}

#[test]
fn a_leader_that_seems_gone_to_all_is_replaced_once_at_most() {
    for count in [3, 5] {
        assert_eq!(first_wrong(|seed| seems_gone_to_all(count, seed, None)), None, "{count} members");
    }
}

/// Whose turn it is first lacks what the leader had committed: the next one is asked, in the same term.
#[test]
fn one_that_lacks_entries_does_not_win_and_does_not_hold_up_the_next() {
    for seed in 0..SEEDS {
        let (mut group, leader, term) = Group::settled(3, seed, true, None).unwrap();
        let others = group.others(leader);
        group.set_apart(leader, others[0], true);
        let command = 7_u64.to_le_bytes().to_vec().into();
        let proposal = Proposal { id: 7, is_privileged: false, only_term: None, command };
        group.input(leader, Input::Propose(vec![proposal]));
        group.run_for(10_000);
        let begun_us = group.now_us;
        group.cores.insert(leader, None);
        group.seems_gone(leader, others.clone());
        let led = group.wait().unwrap();
        assert_eq!(led, (others[1], term + 1), "seed {seed}");
        let gap_us = group.now_us - begun_us;
        assert!(gap_us < 60_000, "seed {seed}: {gap_us}");
    }
}

/// A check that has never failed proves nothing.
#[test]
fn the_bugs_planted_in_it_are_found() {
    let bug = Some(PlantedBug::AllTurnsAtOnce);
    let found = first_wrong(|seed| killed(3, seed, true, bug));
    println!("AllTurnsAtOnce: {found:?}");
    assert!(found.is_some());
    let bug = Some(PlantedBug::QuickWithoutPreVote);
    let found = first_wrong(|seed| seems_gone_to_one(3, seed, bug));
    println!("QuickWithoutPreVote: {found:?}");
    assert!(found.is_some());
}
