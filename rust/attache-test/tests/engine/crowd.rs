//! Streams of one worker, beside and after each other: an exchange that has ended serves the next one,
//! and whatever the one before has left behind (a waker, a handle to its stream) is not the next one's.

use crate::random::{case, disturbance, event, hold};
use crate::support::*;
use attache_core::{Attribute, AttributeValue, ErrorKind};
use attache_test::model::Kind;
use proptest::prelude::*;

const CASES: u32 = 1_500;

/// How many streams there are at once, at most.
const AT_ONCE: usize = 3;

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// Something to the stream in this place; to a new one, if there is none.
    Event(usize, Event),
    /// The stream in this place is played to its end.
    End(usize),
    /// Somebody wakes one of the wakers that were left behind.
    Wake(usize),
    /// And drops it.
    WakeAndDrop(usize),
    Drop(usize),
    /// Somebody uses all handles that were left behind.
    UseHandles,
    DropHandles,
}

#[derive(Clone, Debug)]
struct Crowd {
    cases: Vec<Case>,
    turns: Vec<Turn>,
}

fn turn() -> impl Strategy<Value = Turn> {
    let place = || 0..AT_ONCE;
    let any = || 0..8usize;
    prop_oneof![
        24 => (place(), event()).prop_map(|(place, event)| Turn::Event(place, event)),
        1 => (place(), disturbance()).prop_map(|(place, event)| Turn::Event(place, event)),
        4 => place().prop_map(Turn::End),
        4 => any().prop_map(Turn::Wake),
        2 => any().prop_map(Turn::WakeAndDrop),
        2 => any().prop_map(Turn::Drop),
        2 => Just(Turn::UseHandles),
        1 => Just(Turn::DropHandles),
    ]
}

fn crowd() -> impl Strategy<Value = Crowd> {
    let kind = any::<bool>().prop_map(|stock| if stock { Kind::Stock } else { Kind::CompiledIn });
    let cases = proptest::collection::vec(kind.prop_flat_map(case), 1..7);
    let turns = proptest::collection::vec(turn(), 0..60);
    (cases, turns).prop_map(|(cases, turns)| Crowd { cases, turns })
}

#[derive(Default)]
struct Plays<'a> {
    /// Those that are under way, by place.
    open: [Option<Play<'a>>; AT_ONCE],
    over: Vec<Play<'a>>,
    started: usize,
}

impl<'a> Plays<'a> {
    fn all(&self) -> impl Iterator<Item = &Play<'a>> {
        self.open.iter().flatten().chain(&self.over)
    }

    fn is_open(&self, who: Who) -> bool {
        self.open.iter().flatten().any(|play| play.who == who)
    }

    /// Who is in this place: a new one, if there is none.
    fn at(&mut self, place: usize, crowd: &'a Crowd, world: &'a World) -> Option<&mut Play<'a>> {
        let play = &mut self.open[place];
        if play.is_none() {
            let case = crowd.cases.get(self.started)?;
            *play = Some(Play::new(self.started, case, world));
            self.started += 1;
        }
        play.as_mut()
    }

    fn end(&mut self, place: usize) -> Result<(), String> {
        let Some(mut play) = self.open[place].take() else { return Ok(()) };
        let ended = play.end();
        let checked = ended.and_then(|()| play.check_end());
        let who = play.who;
        self.over.push(play);
        checked.map_err(|what| format!("stream {who}: {what}"))
    }

    fn turn(&mut self, crowd: &'a Crowd, world: &'a World, turn: Turn) -> Result<(), String> {
        match turn {
            Turn::Event(place, event) => {
                if let Some(play) = self.at(place, crowd, world) {
                    play.event(event);
                }
            }
            Turn::End(place) => self.end(place)?,
            Turn::Wake(at) => self.wake(at, false)?,
            Turn::WakeAndDrop(at) => self.wake(at, true)?,
            Turn::Drop(at) => drop(left(|left| left.wakers.remove(at))),
            Turn::UseHandles => self.use_handles()?,
            Turn::DropHandles => drop(left(|left| std::mem::take(&mut left.handles))),
        }
        Ok(())
    }

    /// A wake is its own stream's alone, and nobody's if that has ended.
    fn wake(&self, at: usize, and_drop: bool) -> Result<(), String> {
        let Some((whose, waker)) = left(|left| left.wakers.get(at).cloned()) else { return Ok(()) };
        let posts = || -> Vec<_> {
            self.all().map(|play| (play.who, play.model.has_scheduled())).collect()
        };
        let before = posts();
        if and_drop {
            drop(left(|left| left.wakers.remove(at)));
            waker.wake();
        } else {
            waker.wake_by_ref();
        }
        for ((who, before), (_, now)) in before.into_iter().zip(posts()) {
            if before != now && (who != whose || !self.is_open(who)) {
                return Err(format!("a waker of stream {whose} has posted to stream {who}"));
            }
        }
        Ok(())
    }

    /// A handle shows its own stream alone, and nothing if that has ended.
    fn use_handles(&self) -> Result<(), String> {
        for (who, handle) in left(|left| left.handles.clone()) {
            let path = handle.attribute_value(Attribute::RequestPath);
            let right = match &path {
                Ok(Some(AttributeValue::Text(path))) => *path == format!("/{who}"),
                Err(error) => error.kind() == ErrorKind::Gone,
                Ok(_) => false,
            };
            if !right || (path.is_ok() && !self.is_open(who)) {
                return Err(format!("the handle of stream {who} shows {path:?}"));
            }
        }
        Ok(())
    }
}

fn run_crowd(crowd: &Crowd) -> Result<(), String> {
    in_world(crowd.cases.len(), |world| {
        let mut plays = Plays::default();
        let before = world.under_way();
        let played = guarded(|| {
            for turn in &crowd.turns {
                plays.turn(crowd, world, *turn)?;
            }
            (0..AT_ONCE).try_for_each(|place| plays.end(place))?;
            // The others one after the other, each in its own weather.
            while let Some(play) = plays.at(0, crowd, world) {
                let case = &crowd.cases[play.who];
                for event in &case.events {
                    play.event(*event);
                }
                plays.end(0)?;
            }
            plays.use_handles()
        });
        violated(plays.all())?;
        played?;
        forget_all();
        plays.over.iter().try_for_each(Play::check_end)?;
        match world.under_way() {
            now if now == before => Ok(()),
            now => Err(format!("{now:?} count as under way, and {before:?} did before")),
        }
    })
}

#[test]
fn every_promise_holds_for_each_of_a_crowd() {
    hold(crowd(), CASES, |crowd| run_crowd(&crowd));
}
