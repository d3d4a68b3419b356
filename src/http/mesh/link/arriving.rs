//! What arrives: frames, taken one by one, each for the stream that it belongs to.

use bytes::{Buf, Bytes, BytesMut};

use super::{ASSUMED_CONNECTION, ASSUMED_STREAM, Side, State, Stream};
use crate::http::mesh::frame::{self, Header, Kind, Settings, Violation, violation};
use crate::http::mesh::{Code, Lost};
use crate::http::{Announcement, Bounds};

/// Pieces of bodies from this size are passed on as they arrive, and stay in the buffer that they
/// arrived in.
const COPIED: usize = 4 << 10;

/// Heads that may wait to be passed on: more than a sidecar lets its application send.
const MAX_HEADS: usize = 100;

/// What they may hold together, in heads of the largest size: they have no credit of their own.
const LARGEST_HEADS: usize = 2;

impl State {
    /// Takes every whole frame from the front of `buf`, and of a large piece of a body what is there.
    pub(in crate::http::mesh) fn take_frames(
        &mut self,
        buf: &mut BytesMut,
        bounds: &Bounds,
    ) -> Result<(), Violation> {
        loop {
            if let Some(mut rest) = self.rest.take() {
                let now = rest.length.min(buf.len());
                if now < rest.length.min(COPIED) {
                    self.rest = Some(rest);
                    return Ok(());
                }
                rest.length -= now;
                let flags = if rest.length == 0 { rest.flags } else { 0 };
                let piece = buf.split_to(now);
                // A few bytes would hold on to all of the buffer.
                let piece = if now < COPIED { Bytes::copy_from_slice(&piece) } else { piece.freeze() };
                self.take_data(Header { length: now, flags, ..rest }, piece)?;
                self.rest = Some(rest).filter(|rest| rest.length > 0);
                continue;
            }
            let Some(header) = Header::read(buf, bounds)? else { return Ok(()) };
            if self.peer.is_none() && header.kind != Kind::Settings {
                return violation("something before the settings");
            }
            let whole = frame::HEADER + header.length;
            if header.kind == Kind::Data && header.length >= COPIED {
                buf.advance(frame::HEADER);
                self.rest = Some(header);
                continue;
            }
            if buf.len() < whole {
                return Ok(());
            }
            // Copied out, so that a few bytes that stay do not hold on to the whole buffer.
            let payload = Bytes::copy_from_slice(&buf[frame::HEADER..whole]);
            buf.advance(whole);
            self.take(header, payload, bounds)?;
        }
    }

    fn take(&mut self, header: Header, payload: Bytes, bounds: &Bounds) -> Result<(), Violation> {
        let number = |at: usize| {
            let four = payload.get(at..at + 4).and_then(|slice| slice.first_chunk());
            four.map_or(0, |bytes| u32::from_be_bytes(*bytes))
        };
        match header.kind {
            Kind::Data => self.take_data(header, payload),
            Kind::Head => self.take_head(header, payload, bounds),
            Kind::Reset => {
                if let Some(stream) = self.streams.get_mut(&header.stream) {
                    stream.lost.get_or_insert(Lost::Reset(Code(number(0))));
                    stream.wake();
                }
                Ok(())
            }
            Kind::Settings => self.take_settings(Settings::read(payload)),
            Kind::Ping if header.flags & frame::ACK == 0 => {
                self.unanswered += 1;
                Ok(())
            }
            Kind::Ping => {
                let trip = self.pinged.take().map(|since| since.elapsed());
                self.round_trip = self.round_trip.into_iter().chain(trip).min();
                self.pings = self.pings.saturating_sub(1);
                self.pongs += 1;
                self.said = Announcement::from_bytes(&payload);
                if self.pings == 0 && self.takes == Some(u32::MAX) {
                    // The peer has read that it is to open no more: this is the last.
                    self.takes = Some(self.last);
                    frame::put_goaway(&mut self.out.tail, self.last, Code::NO_ERROR);
                }
                Ok(())
            }
            Kind::GoAway => {
                let last = number(0);
                self.peer_takes = Some(last);
                for (id, stream) in &mut self.streams {
                    if self.side == Side::Client && *id > last {
                        stream.lost.get_or_insert(Lost::Untaken);
                        stream.wake();
                    }
                }
                Ok(())
            }
            Kind::Window => self.take_credit(header.stream, number(0)),
        }
    }

    fn take_settings(&mut self, settings: Settings) -> Result<(), Violation> {
        if settings.stream_window < ASSUMED_STREAM || settings.connection_window < ASSUMED_CONNECTION {
            return violation("windows smaller than what is taken for granted");
        }
        if self.peer.replace(settings).is_some() {
            return violation("settings for a second time");
        }
        self.greeting.take().into_iter().for_each(std::task::Waker::wake);
        self.credit += i64::from(settings.connection_window - ASSUMED_CONNECTION);
        for stream in self.streams.values_mut() {
            stream.credit += i64::from(settings.stream_window - ASSUMED_STREAM);
            stream.wake();
        }
        Ok(())
    }

    fn take_credit(&mut self, id: u32, credit: u32) -> Result<(), Violation> {
        const MOST: i64 = u32::MAX as i64;
        if credit == 0 {
            return violation("a credit of nothing");
        }
        if id == 0 {
            self.credit += i64::from(credit);
            self.wake_waiting();
        } else if let Some(stream) = self.streams.get_mut(&id) {
            stream.credit += i64::from(credit);
            stream.wake();
            if stream.credit > MOST {
                return Err(Violation(Code::FLOW_CONTROL_ERROR, "more credit than there can be"));
            }
        }
        if self.credit > MOST {
            return Err(Violation(Code::FLOW_CONTROL_ERROR, "more credit than there can be"));
        }
        Ok(())
    }

    fn take_head(&mut self, header: Header, payload: Bytes, bounds: &Bounds) -> Result<(), Violation> {
        let id = header.stream;
        if let Some(stream) = self.streams.get_mut(&id) {
            if stream.arrived {
                return violation("a head after the end of its stream");
            }
            if stream.lost.is_some() {
                // Nobody will take it.
            } else if header.flags & frame::TRAILERS != 0 {
                stream.trailers = Some(payload);
                stream.arrived = true;
            } else if self.side == Side::Client {
                let waiting: usize = stream.heads.iter().map(Bytes::len).sum();
                let most = bounds.head_bytes.saturating_add(frame::HEAD_MARGIN).saturating_mul(LARGEST_HEADS);
                if stream.heads.len() < MAX_HEADS && payload.len() <= most.saturating_sub(waiting) {
                    stream.heads.push(payload);
                    stream.arrived = header.ends();
                } else if stream.lost.is_none() {
                    stream.lost = Some(Lost::Malformed("its interim answers have no end"));
                    frame::put_number(&mut self.out.tail, Kind::Reset, id, Code::CANCEL.0);
                }
            } else {
                return violation("a second head on a stream");
            }
            stream.wake();
            return Ok(());
        }
        if id <= self.last {
            // Of a stream that has been given up.
            return Ok(());
        }
        if self.side == Side::Client {
            return violation("a head on a stream that was not opened");
        }
        if self.takes.is_some_and(|last| id > last) {
            // Told so already.
            return Ok(());
        }
        self.last = id;
        if self.streams.len() >= self.serves {
            frame::put_number(&mut self.out.tail, Kind::Reset, id, Code::REFUSED_STREAM.0);
            return Ok(());
        }
        let mut stream = Stream::new(self.peer.map_or(ASSUMED_STREAM, |peer| peer.stream_window));
        stream.arrived = header.ends();
        self.streams.insert(id, stream);
        self.accepted.push_back((id, payload, header.ends()));
        Ok(())
    }

    fn take_data(&mut self, header: Header, payload: Bytes) -> Result<(), Violation> {
        let (n, ends) = (payload.len(), header.ends());
        if n == 0 && !ends {
            return violation("a piece of nothing");
        }
        if n > (self.window - self.unreturned) as usize {
            return Err(Violation(Code::FLOW_CONTROL_ERROR, "more than the connection's window"));
        }
        self.unreturned += n as u32;
        match self.streams.get_mut(&header.stream) {
            Some(stream) if stream.arrived => return violation("a piece after the end of its stream"),
            Some(stream) if n as i64 > stream.available => {
                return Err(Violation(Code::FLOW_CONTROL_ERROR, "more than the stream's window"));
            }
            // Nobody will take it.
            Some(stream) if stream.lost.is_some() => {}
            Some(stream) => {
                stream.available -= n as i64;
                stream.arrived = ends;
                if n > 0 {
                    self.held += n;
                    stream.held.add(n);
                    stream.put(payload);
                }
                stream.wake();
            }
            None if header.stream > self.last && self.takes.is_none() => {
                return violation("a piece of a stream that was not opened");
            }
            None => {}
        }
        self.return_connection_credit();
        Ok(())
    }
}
