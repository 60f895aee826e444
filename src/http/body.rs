//! A response's body: chunks that are all in memory.

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::any::Any;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Chunks of known length. Each is let go of as soon as it is sent.
#[derive(Default)]
pub struct Body {
    chunks: VecDeque<Bytes>,
    guard: Option<Box<dyn Any + Send>>,
}

impl Body {
    /// One chunk.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::chunks([bytes.into()])
    }

    /// Several chunks, sent in order.
    pub fn chunks(chunks: impl IntoIterator<Item = Bytes>) -> Self {
        Self { chunks: chunks.into_iter().filter(|c| !c.is_empty()).collect(), guard: None }
    }

    /// Bytes that are still to be sent.
    pub fn len(&self) -> u64 {
        self.chunks.iter().map(|c| c.len() as u64).sum()
    }

    /// Whether nothing is to be sent.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Keeps a value until the body was handed on to its end or dropped.
    pub(super) fn guarded(mut self, guard: impl Any + Send) -> Self {
        self.guard = Some(Box::new(guard));
        self
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.chunks.pop_front().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len())
    }
}
