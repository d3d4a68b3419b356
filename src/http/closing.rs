//! The word that idle connections of a worker are to be closed. Waiting for it costs a connection
//! its place in a table, once, and then a look at a flag.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// The word of one worker, said once.
#[derive(Debug, Default)]
pub struct Closing {
    said: Cell<bool>,
    waiting: RefCell<Slab<Waker>>,
}

/// Resolves when the word is said.
#[derive(Debug)]
pub struct Closed {
    closing: Rc<Closing>,
    place: Option<usize>,
}

impl Closing {
    /// Says it.
    pub fn say(&self) {
        self.said.set(true);
        self.waiting.borrow().iter().for_each(|(_, waker)| waker.wake_by_ref());
    }

    /// Waits for it.
    pub fn wait(self: &Rc<Self>) -> Closed {
        Closed { closing: self.clone(), place: None }
    }
}

impl Future for Closed {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.closing.said.get() {
            return Poll::Ready(());
        }
        match self.place {
            Some(place) => self.closing.waiting.borrow_mut()[place].clone_from(cx.waker()),
            None => {
                let place = self.closing.waiting.borrow_mut().insert(cx.waker().clone());
                self.place = Some(place);
            }
        }
        Poll::Pending
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.closing.waiting.borrow_mut().remove(place);
        }
    }
}
