//! Where exchanges come from, and where they go: one that has ended, and that nobody holds any more,
//! serves another stream of the same worker. Its memory, its host's and its waker's are then there
//! already, and in the caches.

use std::any::Any;

use super::*;

impl Exchange {
    /// An exchange of a loaded filter, on a stream.
    pub fn new<H: Host>(filter: &Loaded, host: H) -> Self {
        Exchange::new_on(&ThisWorker::here(), filter, host)
    }

    /// As [`new`](Exchange::new), where the thread's own has been found already.
    #[inline]
    pub fn new_on<H: Host>(worker: &ThisWorker, filter: &Loaded, host: H) -> Self {
        if let Some(mut kept) = worker.0.take_kept()
            && let Some(inner) = Rc::get_mut(&mut kept)
            && let Some(place) = (&mut *inner.host as &mut dyn Any).downcast_mut::<H>()
        {
            let any_time = host.capabilities().emit_any_time;
            *place = host;
            inner.set_any_time(any_time);
            inner.filter = Some(filter.0.clone());
            inner.alive = Cell::new(true);
            return Exchange(kept);
        }
        Exchange::make(worker, filter, host)
    }

    #[cold]
    fn make<H: Host>(worker: &ThisWorker, filter: &Loaded, host: H) -> Self {
        let any_time = host.capabilities().emit_any_time;
        let mut inner = Inner {
            task: Cell::new(None),
            filter: Some(filter.0.clone()),
            worker: worker.0.clone(),
            depth: Cell::new(0),
            due: Cell::new(false),
            busy: Cell::new(false),
            handling: Cell::new(false),
            resting: Cell::new(false),
            alive: Cell::new(true),
            any_time,
            status_changed: Cell::new(false),
            spans_over: Cell::new(false),
            // A host that has something to drop has to drop it when its stream ends.
            may_be_kept: Cell::new(!std::mem::needs_drop::<H>()),
            state: RefCell::new(State::new()),
            wake: OwnWaker::new(),
            host: Box::new(host),
            started_by: Cell::new(None),
            calls: OnceCell::new(),
            spans: RefCell::new(Rarely::NOT),
        };
        inner.set_any_time(any_time);
        Exchange(Rc::new(inner))
    }

    /// Gives up a reference, as dropping it does. If it is the last one to an exchange that has been
    /// [destroyed](Exchange::destroy), the worker may keep the memory for another one.
    ///
    /// The host may then be dropped later than this, or be replaced by the next one, unless it has
    /// something to drop: such a host goes at once.
    pub fn retire(self) {
        let mut last = self.0;
        // Otherwise somebody else holds it, and will drop it.
        if let Some(inner) = Rc::get_mut(&mut last)
            && inner.may_be_kept.get()
            && inner.is_empty()
        {
            inner.renew();
            let worker = inner.worker.clone();
            worker.keep(last);
        }
    }
}

impl Inner {
    fn set_any_time(&mut self, any_time: bool) {
        self.any_time = any_time;
        let state = self.state.get_mut();
        state.request.flow.any_time = any_time;
        state.response.flow.any_time = any_time;
    }

    /// Whether it has nothing to drop but what every exchange has, and its waker is nobody else's.
    fn is_empty(&mut self) -> bool {
        !self.alive.get()
            && self.has_no_work()
            && self.state.get_mut().is_empty()
            && self.calls.get().is_none()
            && !self.spans.get_mut().is_there()
            && self.wake.renew()
    }

    /// There is no future, or it rests; a large one does not.
    fn has_no_work(&mut self) -> bool {
        if self.resting.get() && self.started_by.get().is_some() {
            return true;
        }
        rarely();
        if self.resting.take() {
            self.task.set(None);
        }
        self.task.get_mut().is_none()
    }

    /// Makes it as it was, but for the stream. Every field is named, so that none is forgotten.
    fn renew(&mut self) {
        let Inner {
            task: _,
            filter,
            worker: _,
            depth,
            due,
            busy,
            handling,
            resting: _,
            // Nobody calls the host until there is another.
            alive: _,
            any_time: _,
            status_changed,
            spans_over,
            may_be_kept: _,
            state,
            wake: _,
            host: _,
            started_by: _,
            calls: _,
            spans: _,
        } = self;
        *depth = Cell::new(0);
        *due = Cell::new(false);
        *busy = Cell::new(false);
        *handling = Cell::new(false);
        *status_changed = Cell::new(false);
        *spans_over = Cell::new(false);
        // It is empty: that there is nothing to drop need not be found out again.
        std::mem::forget(std::mem::replace(state.get_mut(), State::new()));
        // Last: it may be the filter's end.
        *filter = None;
    }
}

impl State {
    #[inline]
    fn new() -> Self {
        State {
            started: false,
            handled: false,
            next: NextState::NotCalled,
            answered: false,
            replied: false,
            outcome: None,
            completed: false,
            request: Side::new(),
            response: Side::new(),
            response_waiter: Waiter::Nobody,
            rare: Lazy::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.is_plain()
            && self.request.is_empty()
            && self.response.is_empty()
            && !matches!(self.response_waiter, Waiter::Other(_))
    }
}

impl Side {
    #[inline]
    fn new() -> Self {
        Side { flow: Flow::new(), waiter: Waiter::Nobody, rare: Lazy::new() }
    }

    fn is_empty(&self) -> bool {
        self.flow.is_empty() && !matches!(self.waiter, Waiter::Other(_))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::Waker;

    use crate::host::Notify;
    use crate::metrics::{MetricId, MetricKind, MetricOp, MetricSink};
    use crate::registry::{LoadedRoute, Registry};
    use crate::{ConfigError, ConfigHost, Filter, Next, Request, Setup};

    /// Streams that are told apart by a number, which is their path. `D` is what they have to drop.
    struct Numbered<D>(u64, D);

    impl<D: 'static> Host for Numbered<D> {
        fn capabilities(&self) -> crate::host::Capabilities {
            crate::host::Capabilities::COMMON
        }
        fn header(&self, _: Map, _: &str, index: usize, f: &mut dyn FnMut(&[u8])) -> usize {
            if index == 0 {
                f(self.0.to_string().as_bytes());
            }
            1
        }
        fn headers(&self, _: Map, _: &mut dyn FnMut(&[u8], &[u8])) -> bool {
            true
        }
        fn set_header(&self, _: Map, _: &str, _: &[u8]) -> bool {
            true
        }
        fn append_header(&self, _: Map, _: &str, _: &[u8]) -> bool {
            true
        }
        fn remove_header(&self, _: Map, _: &str) -> bool {
            true
        }
        fn body_len(&self, _: Direction, _: Area) -> usize {
            0
        }
        fn frame_is_buffer(&self, _: Direction) -> bool {
            false
        }
        fn body(&self, _: Direction, _: Area, _: &mut dyn FnMut(&[u8])) {}
        fn drain(&self, _: Direction, _: Area, _: usize) {}
        fn append(&self, _: Direction, _: Area, _: &[u8]) {}
        fn buffer_limit(&self) -> u64 {
            0
        }
        fn set_buffer_limit(&self, _: u64) {}
        fn resume(&self, _: Direction) {}
        fn send_reply(&self, _: &LocalReply<'_>) {}
        fn send_reply_headers(&self, _: &[(&[u8], &[u8])], _: bool) {}
        fn send_reply_data(&self, _: &[u8], _: bool) {}
        fn send_reply_trailers(&self, _: &[(&[u8], &[u8])]) {}
        fn reset(&self, _: &str) {}
        fn notifier(&self) -> Box<dyn Notify> {
            Box::new(Post(AtomicU64::new(self.0)))
        }
        fn bind(&self, notifier: &dyn Notify) {
            let post: &Post = (notifier as &dyn Any).downcast_ref().unwrap();
            post.0.store(self.0, Ordering::Relaxed);
        }
        fn route_configs(&self, _: &mut dyn FnMut(&[&LoadedRoute])) {}
        fn stream_id(&self, _: &mut dyn std::fmt::Write) -> std::fmt::Result {
            Ok(())
        }
    }

    thread_local! {
        /// To which streams was posted, and a zero when one was let go of.
        static POSTED: RefCell<Vec<u64>> = RefCell::default();
    }

    struct Post(AtomicU64);
    impl Notify for Post {
        fn notify(&self) {
            POSTED.with_borrow_mut(|posted| posted.push(self.0.load(Ordering::Relaxed)));
        }
        fn release(&self) {
            POSTED.with_borrow_mut(|posted| posted.push(0));
        }
    }

    struct NoOne;
    impl MetricSink for NoOne {
        fn update(&self, _: MetricId, _: MetricOp, _: u64, _: &[&str]) {}
    }
    impl ConfigHost for NoOne {
        fn define(&mut self, kind: MetricKind, _: &str, _: &[&str]) -> Result<MetricId, String> {
            Ok(MetricId { kind, id: 0 })
        }
        fn sink(&self) -> Arc<dyn MetricSink> {
            Arc::new(NoOne)
        }
        fn wants_stats(&self) -> bool {
            false
        }
    }

    thread_local! {
        /// What the filter has seen and kept.
        static SEEN: RefCell<(Vec<String>, Vec<Request>, Vec<Waker>)> = RefCell::default();
    }

    /// Keeps its request (path 100), its waker (200 and 201), answers by itself (300), or panics (400).
    struct Keeps;

    impl Filter for Keeps {
        type Config = ();
        type RouteConfig = ();
        fn new(_: (), _: &mut Setup) -> std::result::Result<Self, ConfigError> {
            Ok(Keeps)
        }
        async fn handle(&self, req: Request, next: Next) -> Result<Response> {
            let path = req.path();
            SEEN.with_borrow_mut(|seen| seen.0.push(path.clone()));
            match path.as_str() {
                "100" => SEEN.with_borrow_mut(|seen| seen.1.push(req)),
                "200" | "201" => {
                    std::future::poll_fn(|cx| {
                        SEEN.with_borrow_mut(|seen| seen.2.push(cx.waker().clone()));
                        Poll::<()>::Pending
                    })
                    .await;
                }
                "300" => (),
                "400" => panic!("as it was asked to"),
                _ => return next.run(req).await,
            }
            Ok(Response::text(StatusCode::OK, "mine"))
        }
    }

    fn load<F: Filter>() -> Loaded {
        Registry::new().with::<F>("keeps").load("keeps", b"", Box::new(NoOne)).unwrap()
    }

    fn loaded() -> Loaded {
        load::<Keeps>()
    }

    /// Runs an exchange from its beginning to its end. Returns where it was.
    fn run<D: 'static>(loaded: &Loaded, host: Numbered<D>) -> *const Inner {
        let passes = host.0 < 100;
        let exchange = Exchange::new(loaded, host);
        let place = Rc::as_ptr(&exchange.0);
        let verdict = exchange.headers(Direction::Request, true);
        if passes {
            assert_eq!(verdict, Verdict::Continue);
            assert_eq!(exchange.headers(Direction::Response, false), Verdict::Continue);
            assert_eq!(exchange.data(Direction::Response, true), DataVerdict::Continue);
        } else {
            assert_eq!(verdict, Verdict::Stop);
        }
        exchange.complete();
        exchange.destroy();
        exchange.retire();
        place
    }

    #[test]
    fn one_after_another_they_have_the_same_place_and_nothing_else_in_common() {
        let loaded = loaded();
        let first = run(&loaded, Numbered(1, ()));
        for number in 2..5 {
            assert_eq!(run(&loaded, Numbered(number, ())), first);
        }
        SEEN.with_borrow(|seen| assert_eq!(seen.0, ["1", "2", "3", "4"]));
        let mut counted = Vec::new();
        loaded.take_stats(|_, _, value| counted.push(value));
        assert_eq!(counted, [4], "each is counted as an exchange; none is active or suspended");
        // One that has answered had more to drop, and is as good as another.
        run(&loaded, Numbered(300, ()));
        let place = run(&loaded, Numbered(5, ()));
        assert_eq!(run(&loaded, Numbered(6, ())), place);
    }

    /// Tells where its future is, of which `N` bytes are its own.
    struct Placed<const N: usize>;

    impl<const N: usize> Filter for Placed<N> {
        type Config = ();
        type RouteConfig = ();
        fn new(_: (), _: &mut Setup) -> std::result::Result<Self, ConfigError> {
            Ok(Placed)
        }
        async fn handle(&self, req: Request, next: Next) -> Result<Response> {
            let mine = [1u8; N];
            SEEN.with_borrow_mut(|seen| seen.0.push(format!("{:p}", &mine)));
            let resp = next.run(req).await;
            assert_eq!(mine, [1; N]);
            resp
        }
    }

    /// Runs some exchanges with futures of `N` bytes. Returns where those were, and whether one rests.
    fn places<const N: usize>() -> (Vec<String>, bool) {
        let loaded = load::<Placed<N>>();
        for number in 1..4 {
            run(&loaded, Numbered(number, ()));
        }
        let next = Exchange::new(&loaded, Numbered(4, ()));
        (SEEN.take().0, next.0.resting.get())
    }

    #[test]
    fn a_future_that_is_done_serves_the_next_exchange_unless_it_is_large() {
        let (first, rests) = places::<64>();
        assert!(rests);
        assert_eq!(first, vec![first[0].clone(); 3]);
        // What rests is of another filter.
        let (others, rests) = places::<65>();
        assert!(rests);
        assert_eq!(others, vec![others[0].clone(); 3]);
        let (_, rests) = places::<RESTING>();
        assert!(!rests, "that is too much to be kept");
    }

    #[test]
    fn a_future_that_rests_is_left_alone() {
        let loaded = loaded();
        run(&loaded, Numbered(1, ()));
        let exchange = Exchange::new(&loaded, Numbered(2, ()));
        exchange.headers(Direction::Request, true);
        exchange.headers(Direction::Response, false);
        assert!(exchange.0.resting.get());
        exchange.0.wake.wake();
        exchange.scheduled();
        assert!(exchange.0.resting.get());
        exchange.destroy();
        exchange.retire();
        // A reply from elsewhere to a stream that `handle` has not seen.
        let exchange = Exchange::new(&loaded, Numbered(3, ()));
        assert!(exchange.0.resting.get());
        assert_eq!(exchange.headers(Direction::Response, true), Verdict::Continue);
        exchange.destroy();
        exchange.retire();
        // One that has come to no end.
        run(&loaded, Numbered(400, ()));
        run(&loaded, Numbered(4, ()));
        run(&loaded, Numbered(5, ()));
        SEEN.with_borrow(|seen| assert_eq!(seen.0, ["1", "2", "400", "4", "5"]));
    }

    /// Has an `on_complete`, and passes it on to a filter that has none.
    struct Outer(Keeps);

    impl Filter for Outer {
        type Config = ();
        type RouteConfig = ();
        fn new(_: (), _: &mut Setup) -> std::result::Result<Self, ConfigError> {
            Ok(Outer(Keeps))
        }
        async fn handle(&self, req: Request, next: Next) -> Result<Response> {
            self.0.handle(req, next).await
        }
        fn on_complete(&self, done: &crate::Completion) {
            SEEN.with_borrow_mut(|seen| seen.0.push(format!("{:?}", done.outcome())));
            self.0.on_complete(done);
        }
    }

    #[test]
    fn only_a_filter_without_on_complete_is_not_told_of_the_end() {
        let (outer, inner) = (load::<Outer>(), loaded());
        for number in 1..3 {
            run(&outer, Numbered(number, ()));
            run(&inner, Numbered(10 + number, ()));
        }
        SEEN.with_borrow(|seen| {
            assert_eq!(seen.0, ["1", "Responded", "11", "2", "Responded", "12"]);
        });
        assert!(outer.0.listens_for_the_end());
        assert!(!inner.0.listens_for_the_end());
    }

    #[test]
    fn a_next_hop_that_was_full_is_nothing_to_drop() {
        let loaded = loaded();
        let exchange = Exchange::new(&loaded, Numbered(1, ()));
        let place = Rc::as_ptr(&exchange.0);
        assert_eq!(exchange.headers(Direction::Request, true), Verdict::Continue);
        assert_eq!(exchange.headers(Direction::Response, false), Verdict::Continue);
        exchange.downstream_watermark(true);
        exchange.destroy();
        exchange.retire();
        let next = Exchange::new(&loaded, Numbered(2, ()));
        assert_eq!(Rc::as_ptr(&next.0), place);
        assert_eq!(next.0.state.borrow().response.flow.full, 0, "that was another stream's");
    }

    #[test]
    fn no_mark_of_one_is_on_the_next() {
        let loaded = loaded();
        let exchange = Exchange::new(&loaded, Numbered(1, ()));
        let place = Rc::as_ptr(&exchange.0);
        let marks = |inner: &Inner| {
            let Inner { due, busy, handling, status_changed, spans_over, .. } = inner;
            [due, busy, handling, status_changed, spans_over].map(|mark| mark.replace(true))
        };
        assert_eq!(marks(&exchange.0), [false; 5]);
        exchange.0.busy.set(false);
        exchange.destroy();
        exchange.retire();
        let next = Exchange::new(&loaded, Numbered(2, ()));
        assert_eq!(Rc::as_ptr(&next.0), place);
        assert_eq!(marks(&next.0), [false; 5]);
    }

    #[test]
    fn two_at_once_have_places_of_their_own() {
        let loaded = loaded();
        let outer = Exchange::new(&loaded, Numbered(1, ()));
        assert_ne!(run(&loaded, Numbered(2, ())), Rc::as_ptr(&outer.0));
    }

    #[test]
    fn what_the_filter_has_kept_stays_what_it_was() {
        let loaded = loaded();
        let held = run(&loaded, Numbered(100, ()));
        assert_ne!(run(&loaded, Numbered(1, ())), held);
        run(&loaded, Numbered(200, ()));
        let next = Exchange::new(&loaded, Numbered(2, ()));
        SEEN.with_borrow_mut(|(_, requests, wakers)| {
            assert_eq!(requests.pop().unwrap().path(), "", "its exchange has ended");
            wakers.pop().unwrap().wake();
        });
        assert!(!next.0.wake.enter(), "nobody has woken this one");
    }

    #[test]
    fn a_wake_goes_to_the_stream_that_the_exchange_serves_now() {
        let loaded = loaded();
        let wakes = |number| {
            let exchange = Exchange::new(&loaded, Numbered(number, ()));
            assert_eq!(exchange.headers(Direction::Request, true), Verdict::Stop);
            SEEN.with_borrow_mut(|(_, _, wakers)| wakers.pop().unwrap().wake());
            exchange.complete();
            exchange.destroy();
            let place = Rc::as_ptr(&exchange.0);
            exchange.retire();
            place
        };
        let place = wakes(200);
        assert_eq!(wakes(201), place);
        POSTED.with_borrow(|posted| assert_eq!(posted[..], [200, 0, 201, 0]));
    }

    #[test]
    fn a_host_with_something_to_drop_goes_at_once() {
        let loaded = loaded();
        let dropped = Rc::new(());
        run(&loaded, Numbered(1, dropped.clone()));
        assert_eq!(Rc::strong_count(&dropped), 1);
        // The other kind of host does not take its place.
        run(&loaded, Numbered(2, ()));
        run(&loaded, Numbered(3, dropped.clone()));
        run(&loaded, Numbered(4, ()));
        SEEN.with_borrow(|seen| assert_eq!(seen.0, ["1", "2", "3", "4"]));
    }

    #[test]
    fn a_filter_goes_with_its_last_exchange() {
        let loaded = loaded();
        let filter = Arc::downgrade(&loaded.0);
        let exchange = Exchange::new(&loaded, Numbered(1, ()));
        drop(loaded);
        exchange.destroy();
        assert_eq!(filter.strong_count(), 1);
        exchange.retire();
        assert_eq!(filter.strong_count(), 0);
    }

    #[test]
    fn they_go_with_their_thread() {
        let kept = std::thread::spawn(|| {
            let loaded = loaded();
            run(&loaded, Numbered(1, ()));
            let exchange = Exchange::new(&loaded, Numbered(2, ()));
            let part = exchange.0.wake.part();
            exchange.destroy();
            exchange.retire();
            assert_ne!(part.strong_count(), 0);
            part
        });
        assert_eq!(kept.join().unwrap().strong_count(), 0);
    }
}
