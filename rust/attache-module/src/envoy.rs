//! What a config has of Envoy's own, since 1.40: generic secrets, and runtime flags.
//!
//! The C ABI tells of no change, so Envoy's main thread is asked to look (`config_scheduled`): soon at
//! first, then every second for as long as the config lives. A config that uses neither is never asked.
//!
//! *Secrets.* Each of Envoy's threads has its own copy, which no other thread may touch. Values are taken
//! from the main thread. Workers can have a first one earlier than that has been asked; it is then taken
//! from the worker that needs it.
//!
//! *Flags.* The main thread alone sees them; any other gets the default. So what flags are set to is
//! written down there, for all threads.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use attache_core::{Looking, RuntimeFlags, SecretError, SecretUpdates, keep_looking};

use crate::abi::{Callbacks, EnvoyBuffer, EnvoyConfig, ModuleBuffer};
use crate::config::{MainThread, event};

/// The most flags that a config can look at: what is asked by a name that comes from outside would
/// otherwise grow for ever.
const MOST_FLAGS: usize = 1024;

/// A secret that Envoy has, or is getting.
pub(crate) struct Watched {
    /// Envoy's number for it.
    id: usize,
    /// What the main thread saw last.
    seen: Mutex<Vec<u8>>,
    updates: SecretUpdates,
}

/// What a flag is set to, as each kind that it can be read as.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Flag {
    boolean: Option<bool>,
    integer: Option<u64>,
    double: Option<f64>,
}

/// Envoy's secrets and flags, for one config.
pub(crate) struct InEnvoy {
    envoy: EnvoyConfig,
    api: &'static Callbacks,
    main: Arc<MainThread>,
    /// The filter is being made, on the main thread.
    making: AtomicBool,
    looking: AtomicBool,
    closed: AtomicBool,
    secrets: Mutex<Vec<Arc<Watched>>>,
    flags: RwLock<HashMap<String, Flag>>,
    /// There have been too many flags, which has been logged.
    full: AtomicBool,
}

// SAFETY: `envoy` is used only by methods whose callers prove that the config lives and that this is a
// thread of Envoy's.
unsafe impl Send for InEnvoy {}
// SAFETY: as above; the rest is made for any thread.
unsafe impl Sync for InEnvoy {}

impl InEnvoy {
    /// # Safety
    /// `envoy` must be the config that Envoy is making, further down the stack.
    pub(crate) unsafe fn new(
        envoy: EnvoyConfig,
        api: &'static Callbacks,
        main: Arc<MainThread>,
    ) -> Self {
        InEnvoy {
            envoy,
            api,
            main,
            making: AtomicBool::new(true),
            looking: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            secrets: Mutex::default(),
            flags: RwLock::default(),
            full: AtomicBool::new(false),
        }
    }

    /// The filter is made, or refused.
    pub(crate) fn made(&self) {
        self.making.store(false, Ordering::Relaxed);
    }

    /// The config goes: there are no more values.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let secrets = self.secrets.lock().map(|mut secrets| std::mem::take(&mut *secrets));
        // Outside of the lock: whoever waits for one is told.
        drop(secrets);
    }

    fn begin_looking(self: &Arc<Self>) {
        if !self.looking.swap(true, Ordering::Relaxed) {
            let it: Weak<Self> = Arc::downgrade(self);
            keep_looking(it);
        }
    }

    /// The main thread looks.
    ///
    /// # Safety
    /// This must be it, and the config must live during the call.
    pub(crate) unsafe fn look_now(&self) {
        // No lock is held while anybody is told.
        let secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for watched in secrets {
            // SAFETY: the caller's promise.
            unsafe { self.look_at_secret(&watched) };
        }
        // Others may read meanwhile, and wait only for what has changed.
        let keys: Vec<_> = self.read_flags(|flags| flags.keys().cloned().collect());
        for key in keys {
            // SAFETY: the caller's promise.
            let now = unsafe { self.look_at_flag(&key) };
            if self.read_flags(|flags| flags.get(&key) != Some(&now)) {
                self.write_flags(|flags| flags.insert(key, now));
            }
        }
    }

    // ---- secrets ----------------------------------------------------------------------------

    /// # Safety
    /// The config must be in the making by Envoy, on this thread.
    pub(crate) unsafe fn watch(
        self: &Arc<Self>,
        name: &str,
        sds_config: Option<&str>,
        updates: SecretUpdates,
    ) -> Result<Arc<Watched>, SecretError> {
        let subscribe = self.api.subscribe_secret.ok_or(SecretError::UNSUPPORTED)?;
        let source = sds_config.unwrap_or_default();
        // SAFETY: the caller's promise; Envoy reads both texts during the call, and lets no exception
        // out.
        let id = unsafe { subscribe(self.envoy, name.into(), source.into()) };
        if id == 0 {
            let why = match sds_config {
                None => "there is no generic secret of this name in Envoy's bootstrap",
                Some(_) => "its `sds_config`: Envoy refuses it, and has logged why",
            };
            return Err(SecretError::Refused { name: name.to_owned(), why: why.to_owned() });
        }
        let watched = Arc::new(Watched { id, seen: Mutex::default(), updates });
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).push(watched.clone());
        // SAFETY: the caller's promise.
        unsafe { self.look_at_secret(&watched) };
        if sds_config.is_some() {
            self.begin_looking();
        }
        Ok(watched)
    }

    /// Calls `f` with the secret as this thread has it.
    ///
    /// # Safety
    /// This must be a thread of Envoy's, and the config must live during the call.
    unsafe fn read_secret(&self, id: usize, f: impl FnOnce(&[u8])) {
        let Some(get) = self.api.get_secret else { return };
        let mut value = EnvoyBuffer::EMPTY;
        // SAFETY: the caller's promise; the out-pointer is ours and live.
        if unsafe { get(self.envoy, id, &mut value) } {
            // SAFETY: the bytes stay where they are until this thread's next event.
            f(unsafe { value.as_slice() });
        }
    }

    /// # Safety
    /// As [`look_now`](Self::look_now).
    unsafe fn look_at_secret(&self, watched: &Watched) {
        let mut new = None;
        // SAFETY: the caller's promise.
        unsafe {
            self.read_secret(watched.id, |value| {
                let mut seen = watched.seen.lock().unwrap_or_else(PoisonError::into_inner);
                if *seen != value {
                    *seen = value.to_vec();
                    new = Some(value.to_vec());
                }
            });
        }
        if let Some(value) = new {
            watched.updates.set(&value);
        }
    }

    /// A worker needs a secret of which there has been no value yet.
    ///
    /// # Safety
    /// As [`read_secret`](Self::read_secret).
    pub(crate) unsafe fn first(&self, watched: &Watched) {
        // SAFETY: the caller's promise.
        unsafe { self.read_secret(watched.id, |value| watched.updates.first(value)) };
    }

    // ---- flags ------------------------------------------------------------------------------

    /// The flags, if this Envoy has them for modules.
    pub(crate) fn flags(self: &Arc<Self>) -> Option<Arc<dyn RuntimeFlags>> {
        self.api.get_runtime_bool.and(self.api.get_runtime_int).and(self.api.get_runtime_number)?;
        Some(Arc::new(Flags(self.clone())))
    }

    fn read_flags<R>(&self, f: impl FnOnce(&HashMap<String, Flag>) -> R) -> R {
        f(&self.flags.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_flags<R>(&self, f: impl FnOnce(&mut HashMap<String, Flag>) -> R) -> R {
        f(&mut self.flags.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// # Safety
    /// This must be Envoy's main thread.
    unsafe fn look_at_flag(&self, key: &str) -> Flag {
        /// What it is, whatever the default.
        fn set<T: PartialEq>(get: impl Fn(T) -> T, [one, other]: [T; 2]) -> Option<T> {
            let value = get(one);
            (value == get(other)).then_some(value)
        }
        let key = || ModuleBuffer::from(key);
        Flag {
            // SAFETY: the caller's promise; Envoy reads the key during the call. So below.
            boolean: self
                .api
                .get_runtime_bool
                .and_then(|get| set(|default| unsafe { get(key(), default) }, [false, true])),
            // SAFETY: as above.
            integer: (self.api.get_runtime_int)
                .and_then(|get| set(|default| unsafe { get(key(), default) }, [0, 1])),
            // SAFETY: as above.
            double: (self.api.get_runtime_number)
                .and_then(|get| set(|default| unsafe { get(key(), default) }, [0.0, 1.0])),
        }
    }

    fn flag(self: &Arc<Self>, key: &str) -> Flag {
        if let Some(flag) = self.read_flags(|flags| flags.get(key).copied()) {
            return flag;
        }
        let here = self.making.load(Ordering::Relaxed) && self.main.is_here();
        // SAFETY: it was just made sure of.
        let flag = if here { unsafe { self.look_at_flag(key) } } else { Flag::default() };
        if self.closed.load(Ordering::Relaxed) {
            return flag;
        }
        let noted = self.write_flags(|flags| {
            let room = flags.len() < MOST_FLAGS || flags.contains_key(key);
            // Meanwhile the main thread may have looked at it, for another one.
            room.then(|| *flags.entry(key.to_owned()).or_insert(flag))
        });
        if let Some(flag) = noted {
            self.begin_looking();
            if !here {
                self.main.ask(event::LOOK);
            }
            return flag;
        }
        if !self.full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "a filter has looked at {MOST_FLAGS} runtime flags; `{key}` and all others have their \
                 defaults"
            );
        }
        flag
    }
}

impl Looking for InEnvoy {
    fn look(&self) -> bool {
        let open = !self.closed.load(Ordering::Relaxed);
        if open {
            self.main.ask(event::LOOK);
        }
        open
    }
}

/// Envoy's runtime flags, for any thread.
struct Flags(Arc<InEnvoy>);

impl RuntimeFlags for Flags {
    /// Envoy's own way of it is for its main thread, too.
    fn feature_enabled(&self, key: &str, default_percent: u64) -> bool {
        let percent = self.integer(key, default_percent);
        // A new state has new keys: it is how the standard library makes random numbers.
        percent >= 100 || (percent > 0 && RandomState::new().hash_one(()) % 100 < percent)
    }

    fn boolean(&self, key: &str, default: bool) -> bool {
        self.0.flag(key).boolean.unwrap_or(default)
    }

    fn integer(&self, key: &str, default: u64) -> u64 {
        self.0.flag(key).integer.unwrap_or(default)
    }

    fn double(&self, key: &str, default: f64) -> f64 {
        self.0.flag(key).double.unwrap_or(default)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::ffi::{CStr, c_void};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use attache_core::registry::Registry;
    use attache_core::{
        ConfigError, Filter, Next, Request, Response, Runtime, Secret, SecretSource, Setup,
    };

    use super::*;
    use crate::abi::Scheduler;
    use crate::callout::ConfigCalls;
    use crate::config::{ConfigStream, Sink, fake};

    thread_local! {
        /// The secret, as this thread of Envoy's has it.
        static SECRET: RefCell<&'static str> = const { RefCell::new("") };
        /// What each flag is set to, for the main thread.
        static FLAG: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// Envoy's config: what the main thread was asked for. A timer may ask it at any time.
    #[derive(Default)]
    struct FakeConfig(Mutex<Vec<u64>>);

    fn config() -> &'static FakeConfig {
        Box::leak(Box::default())
    }

    unsafe extern "C" fn post(scheduler: Scheduler, event: u64) {
        // SAFETY: the scheduler is the config, which is never freed.
        unsafe { &*scheduler.cast::<FakeConfig>() }.0.lock().unwrap().push(event);
    }

    // Whose the bytes are makes no difference to the ABI, and Envoy's can be read.

    /// Envoy has one secret, static and by discovery.
    unsafe extern "C" fn subscribe(_: EnvoyConfig, name: EnvoyBuffer, _: EnvoyBuffer) -> usize {
        // SAFETY: the module's text lives during the call.
        usize::from(unsafe { name.as_slice() } == b"key")
    }

    unsafe extern "C" fn get_secret(_: EnvoyConfig, id: usize, out: *mut EnvoyBuffer) -> bool {
        assert_eq!(id, 1);
        let secret = SECRET.with_borrow(|secret| secret.as_bytes());
        // SAFETY: the module's out-pointer is live.
        unsafe { *out = EnvoyBuffer { ptr: secret.as_ptr(), len: secret.len() } };
        true
    }

    unsafe extern "C" fn get_bool(_: ModuleBuffer, default: bool) -> bool {
        default
    }

    unsafe extern "C" fn get_int(_: ModuleBuffer, default: u64) -> u64 {
        FLAG.get().unwrap_or(default)
    }

    unsafe extern "C" fn get_number(_: ModuleBuffer, default: f64) -> f64 {
        FLAG.get().map_or(default, |flag| flag as f64)
    }

    fn of_1_39(name: &'static CStr) -> *mut c_void {
        match fake::name_of(name) {
            "http_filter_config_scheduler_commit" => post as *mut c_void,
            "http_filter_config_generic_secret_subscribe"
            | "http_filter_config_get_generic_secret"
            | "get_runtime_bool"
            | "get_runtime_int"
            | "get_runtime_number" => std::ptr::null_mut(),
            _ => fake::find(name),
        }
    }

    fn of_1_40(name: &'static CStr) -> *mut c_void {
        match fake::name_of(name) {
            "http_filter_config_generic_secret_subscribe" => subscribe as *mut c_void,
            "http_filter_config_get_generic_secret" => get_secret as *mut c_void,
            "get_runtime_bool" => get_bool as *mut c_void,
            "get_runtime_int" => get_int as *mut c_void,
            "get_runtime_number" => get_number as *mut c_void,
            _ => of_1_39(name),
        }
    }

    /// What the filter that was loaded last has of Envoy's.
    type Has = (Option<Secret>, Option<Runtime>);
    static HAS: Mutex<Has> = Mutex::new((None, None));
    static LOADING: Mutex<()> = Mutex::new(());

    struct Having;

    impl Filter for Having {
        type Config = Option<SecretSource>;
        type RouteConfig = ();

        fn new(source: Option<SecretSource>, setup: &mut Setup) -> Result<Self, ConfigError> {
            let runtime = match source {
                None => Some(setup.runtime()?),
                Some(_) => None,
            };
            if let Some(runtime) = &runtime {
                assert_eq!(runtime.integer("early", 1), FLAG.get().unwrap_or(1));
            }
            let secret = source.map(|source| setup.secret(&source)).transpose()?;
            *HAS.lock().unwrap() = (secret, runtime);
            Ok(Having)
        }

        async fn handle(&self, request: Request, next: Next) -> attache_core::Result<Response> {
            next.run(request).await
        }
    }

    fn load(
        envoy: &'static FakeConfig,
        find: fn(&'static CStr) -> *mut c_void,
        config: &str,
    ) -> Result<(Arc<InEnvoy>, Has), String> {
        // SAFETY: these are the functions that the test makes the module call.
        let api = Box::leak(Box::new(unsafe { Callbacks::load(find) }.unwrap()));
        let envoy = std::ptr::from_ref(envoy).cast_mut().cast();
        // SAFETY: the callbacks above take it. So below.
        let main = Arc::new(unsafe { MainThread::new(envoy, api) });
        // SAFETY: as above.
        let sink = Arc::new(unsafe { Sink::new(envoy, api, main.clone()) });
        // SAFETY: as above.
        let calls = Arc::new(unsafe { ConfigCalls::new(envoy, api, main) });
        let host = Box::new(ConfigStream { envoy, api, sink: sink.clone(), calls });
        let _one_at_a_time = LOADING.lock().unwrap();
        let registry = Registry::new().with::<Having>("having");
        let loaded = registry.load("having", config.as_bytes(), host);
        sink.in_envoy.made();
        loaded.map(|_| (sink.in_envoy.clone(), std::mem::take(&mut *HAS.lock().unwrap())))
    }

    const DISCOVERED: &str =
        r#"{"sds_secret_config": {"name": "key", "sds_config": {"path": "somewhere"}}}"#;

    #[test]
    fn a_secret_is_what_the_main_thread_saw_last() {
        let envoy = config();
        let (in_envoy, (secret, _)) = load(envoy, of_1_40, DISCOVERED).unwrap();
        let secret = secret.unwrap();
        let look = |now| {
            SECRET.set(now);
            // SAFETY: the callbacks above take any thread.
            unsafe { in_envoy.look_now() };
            secret.try_get()
        };
        let pending = Err(SecretError::Pending { name: "key".into() });
        assert_eq!(secret.try_get(), pending);
        assert_eq!(look(""), pending);
        let mut watched = secret.clone();
        let mut is_changed = || {
            let changed = pin!(watched.changed());
            changed.poll(&mut Context::from_waker(Waker::noop()))
        };
        assert_eq!(is_changed(), Poll::Pending);
        assert_eq!(look("first").unwrap(), "first");
        assert_eq!(is_changed(), Poll::Ready(true));
        assert_eq!(look("second").unwrap(), "second");
        assert_eq!(look("").unwrap(), "second", "an empty one is none");
        assert_eq!(is_changed(), Poll::Ready(true));
        assert_eq!(look("second").unwrap(), "second");
        assert_eq!(is_changed(), Poll::Pending, "it is the same as before");

        in_envoy.close();
        assert_eq!(look("third").unwrap(), "second");
        assert_eq!(is_changed(), Poll::Ready(false));
        assert!(!in_envoy.look(), "there is nothing to look at any more");
    }

    #[test]
    fn a_static_secret_is_there_at_once_and_one_that_is_not_is_refused() {
        let envoy = config();
        SECRET.set("static");
        let (_, (secret, _)) = load(envoy, of_1_40, r#"{"sds": "key"}"#).unwrap();
        assert_eq!(secret.unwrap().get(), "static");
        assert!(!envoy.0.lock().unwrap().contains(&event::LOOK), "it never changes");
        let refused = |find, config| load(envoy, find, config).err().unwrap();
        let none = refused(of_1_40, r#"{"sds": "none"}"#);
        assert!(none.ends_with("there is no generic secret of this name in Envoy's bootstrap"));
        let other = DISCOVERED.replace("key", "none");
        let none = refused(of_1_40, &other);
        assert!(none.ends_with("its `sds_config`: Envoy refuses it, and has logged why"), "{none}");
        SECRET.set("");
        let empty = refused(of_1_40, r#"{"sds": "key"}"#);
        assert!(empty.ends_with("the secret is empty: `key`"), "{empty}");
    }

    #[test]
    fn an_older_envoy_is_told_from_one_that_refuses() {
        let envoy = config();
        let refused = |config| load(envoy, of_1_39, config).err().unwrap();
        let secrets = "filters cannot get secrets of Envoy's secret discovery";
        assert!(refused(DISCOVERED).contains(secrets));
        assert!(refused(r#"{"sds": "key"}"#).contains(secrets));
        assert!(refused("null").contains("filters cannot see Envoy's runtime flags in this host"));
    }

    #[test]
    fn flags_are_known_where_the_main_thread_has_looked() {
        let envoy = config();
        FLAG.set(Some(7));
        let (in_envoy, (_, runtime)) = load(envoy, of_1_40, "null").unwrap();
        let runtime = runtime.unwrap();
        let elsewhere = |key| {
            let all = || {
                let numbers = (runtime.integer(key, 1), runtime.double(key, 1.5));
                (numbers, runtime.boolean(key, true), runtime.feature_enabled(key, 100))
            };
            std::thread::scope(|scope| scope.spawn(all).join().unwrap())
        };
        assert_eq!(elsewhere("early").0, (7, 7.0));
        assert_eq!(elsewhere("late"), ((1, 1.5), true, true));
        // A timer asks as well.
        assert!(envoy.0.lock().unwrap().contains(&event::LOOK));
        let look = |now| {
            FLAG.set(now);
            // SAFETY: the callbacks above take any thread.
            unsafe { in_envoy.look_now() };
        };
        look(Some(0));
        assert_eq!(elsewhere("late"), ((0, 0.0), true, false));
        look(Some(8));
        assert_eq!(elsewhere("late").0, (8, 8.0));
        look(None);
        assert_eq!(elsewhere("late"), ((1, 1.5), true, true));
        assert!(runtime.string("late").unwrap_err().to_string().contains("the text of a runtime"));
    }

    #[test]
    fn as_many_are_on_as_the_flag_says() {
        let envoy = config();
        FLAG.set(Some(30));
        let (_, (_, runtime)) = load(envoy, of_1_40, "null").unwrap();
        let runtime = runtime.unwrap();
        let on = (0..10_000).filter(|_| runtime.feature_enabled("early", 0)).count();
        assert!((2000..4000).contains(&on), "{on} of 10,000");
    }

    #[test]
    fn flags_of_any_name_do_not_grow_for_ever() {
        let envoy = config();
        let (in_envoy, (_, runtime)) = load(envoy, of_1_40, "null").unwrap();
        let runtime = runtime.unwrap();
        for i in 0..2 * MOST_FLAGS {
            runtime.boolean(&i.to_string(), true);
        }
        assert_eq!(in_envoy.read_flags(HashMap::len), MOST_FLAGS);
        FLAG.set(Some(7));
        // SAFETY: the callbacks above take any thread.
        unsafe { in_envoy.look_now() };
        assert_eq!(runtime.integer("1", 1), 7);
        assert_eq!(runtime.integer("2000", 1), 1);
    }
}
