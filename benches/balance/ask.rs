//! Questions about load, which travel beside requests: alone, or in rounds that a choice waits for.

use crate::policy::{Report, Ticket};

/// A server, and what it said; nothing if it cannot be reached.
pub(crate) type Told = (u16, Option<Report>);

/// A question from a client to a server, and the answer once it is there.
#[derive(Clone, Copy)]
pub(crate) struct Question {
    pub(crate) client: u16,
    pub(crate) server: u16,
    /// The round that it belongs to.
    pub(crate) round: Option<u32>,
    pub(crate) report: Option<Report>,
}

/// Questions of one choice.
#[derive(Clone, Copy)]
pub(crate) struct Round {
    /// The request that is chosen for.
    pub(crate) ticket: Ticket,
    told: [Told; 8],
    answers: u8,
    questions: u8,
    /// What will still come: answers, and the end of patience. Then the slot is free.
    to_come: u8,
    is_decided: bool,
}

impl Round {
    pub(crate) fn told(&self) -> &[Told] {
        &self.told[..usize::from(self.answers)]
    }

    /// Whether it is time to choose: once for each round.
    fn decides(&mut self, is_over: bool) -> bool {
        let decides = !self.is_decided && (is_over || self.answers == self.questions);
        self.is_decided |= decides;
        decides
    }
}

/// All that is being asked.
#[derive(Default)]
pub(crate) struct Rounds {
    questions: Vec<Question>,
    free_questions: Vec<u32>,
    rounds: Vec<Round>,
    free_rounds: Vec<u32>,
}

impl Rounds {
    /// A round of so many questions, which [`Self::ask`] asks one by one.
    pub(crate) fn open(&mut self, ticket: Ticket, questions: usize) -> u32 {
        let questions = questions as u8;
        let told = [(0, None); 8];
        let round = Round { ticket, told, answers: 0, questions, to_come: questions + 1, is_decided: false };
        put(&mut self.rounds, &mut self.free_rounds, round)
    }

    pub(crate) fn ask(&mut self, client: u16, server: u16, round: Option<u32>) -> u32 {
        let question = Question { client, server, round, report: None };
        put(&mut self.questions, &mut self.free_questions, question)
    }

    pub(crate) fn question(&mut self, question: u32) -> &mut Question {
        &mut self.questions[question as usize]
    }

    /// An answer has come back.
    pub(crate) fn close(&mut self, question: u32) -> Question {
        self.free_questions.push(question);
        self.questions[question as usize]
    }

    /// Notes an answer: the round, if it is to be decided now.
    pub(crate) fn note(&mut self, round: u32, told: Told) -> Option<Round> {
        let known = &mut self.rounds[round as usize];
        known.told[usize::from(known.answers)] = told;
        known.answers += 1;
        self.came(round, false)
    }

    /// Patience is over: the round, if it is to be decided now.
    pub(crate) fn expire(&mut self, round: u32) -> Option<Round> {
        self.came(round, true)
    }

    fn came(&mut self, round: u32, is_over: bool) -> Option<Round> {
        let known = &mut self.rounds[round as usize];
        known.to_come -= 1;
        if known.to_come == 0 {
            self.free_rounds.push(round);
        }
        known.decides(is_over).then_some(*known)
    }
}

fn put<T>(slots: &mut Vec<T>, free: &mut Vec<u32>, value: T) -> u32 {
    if let Some(slot) = free.pop() {
        slots[slot as usize] = value;
        return slot;
    }
    slots.push(value);
    slots.len() as u32 - 1
}
