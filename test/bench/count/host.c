// An Envoy that does nothing: loads a module, and drives exchanges through its hooks in the order
// of a direct response. What valgrind counts in `begin` and `finish` is then the module's own work,
// and that of the libraries that it calls; what it counts in `background`, that of a thread which the
// module has started. count.py builds and runs this.
//
// The module's runtime has one thread. It waits while a hook runs, and the worker waits until it sleeps
// again: so every run goes the same way, and an exchange that waits for that thread does so in full.
//
//   host LIBRARY FILTER EXCHANGES
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct {
  const char* bytes;
  size_t length;
} Text;

enum { CONTINUE = 0, STOP = 1, LOG_WARN = 3 };

// The callbacks that need an answer. count.py adds those that a library asks for besides; they
// answer 0.
#define CALLBACK(type, name) type envoy_dynamic_module_callback_##name

static sem_t scheduled_once;
static int resumed;

CALLBACK(void, log)(uint32_t level, Text text) {
  fprintf(stderr, "[%u] %.*s\n", level, (int)text.length, text.bytes);
}
CALLBACK(bool, log_enabled)(uint32_t level) { return level >= LOG_WARN; }
CALLBACK(bool, http_get_header)
(void* stream, uint32_t map, Text name, Text* value, size_t index, size_t* count) {
  *value = (Text){"some-value", 10};
  if (count)
    *count = 1;
  return index == 0;
}
CALLBACK(bool, http_set_header)(void* stream, uint32_t map, Text name, Text value) { return true; }
CALLBACK(void*, http_filter_scheduler_new)(void* stream) { return stream; }
CALLBACK(void, http_filter_scheduler_commit)(void* scheduler, uint64_t event) {
  sem_post(&scheduled_once);
}
CALLBACK(void, http_filter_continue_decoding)(void* stream) { resumed = 1; }
CALLBACK(void*, http_filter_config_scheduler_new)(void* config) { return config; }

static void* config;
static void* (*on_new)(void*, void*);
static uint32_t (*on_request_headers)(void*, void*, bool);
static void (*on_scheduled)(void*, void*, uint64_t);
static uint32_t (*on_local_reply)(void*, void*, uint32_t, Text, bool);
static uint32_t (*on_response_headers)(void*, void*, bool);
static uint32_t (*on_response_body)(void*, void*, bool);
static void (*on_stream_complete)(void*, void*);
static void (*on_destroy)(void*);

static void fail(const char* why) {
  fprintf(stderr, "host: %s\n", why);
  exit(1);
}

// What the runtime's thread does.
static atomic_bool held, sleeps = true;

typedef struct {
  void* (*run)(void*);
  void* argument;
} Start;

__attribute__((noinline)) void* background(void* start) {
  Start it = *(Start*)start;
  free(start);
  return it.run(it.argument);
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                   void* argument) {
  int (*create)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) =
      dlsym(RTLD_NEXT, "pthread_create");
  Start* start = malloc(sizeof *start);
  *start = (Start){run, argument};
  return create(thread, attributes, background, start);
}

// Where the thread sleeps. It is not counted.
int epoll_wait(int fd, struct epoll_event* events, int most, int timeout) {
  sleeps = true;
  int count = syscall(SYS_epoll_wait, fd, events, most, timeout);
  while (held)
    sched_yield();
  sleeps = false;
  return count;
}

static void until_it_sleeps(void) {
  while (!sleeps)
    sched_yield();
}

static void* stream = &config;
static void* filter;

__attribute__((noinline)) uint32_t begin(void) {
  filter = on_new(config, stream);
  return on_request_headers(stream, filter, true);
}

__attribute__((noinline)) void finish(bool stopped) {
  if (stopped)
    on_scheduled(stream, filter, 0);
  if (on_local_reply)
    on_local_reply(stream, filter, 200, (Text){"direct_response", 15}, false);
  if (on_response_headers(stream, filter, false) != CONTINUE)
    fail("the response was stopped");
  if (on_response_body(stream, filter, true) != CONTINUE)
    fail("the body was stopped");
  on_stream_complete(stream, filter);
  on_destroy(filter);
}

static void exchange(void) {
  until_it_sleeps();
  held = true;
  bool stopped = begin() == STOP;
  held = false;
  if (stopped) {
    sem_wait(&scheduled_once);
    until_it_sleeps();
  }
  resumed = !stopped;
  finish(stopped);
  if (!resumed)
    fail("the filter did not let the request go");
}

static void* library;

static void* find(const char* name, bool needed) {
  char symbol[128];
  snprintf(symbol, sizeof symbol, "envoy_dynamic_module_on_%s", name);
  void* found = dlsym(library, symbol);
  if (!found && needed)
    fail(symbol);
  return found;
}

int main(int count, char** arguments) {
  if (count != 4)
    fail("LIBRARY FILTER EXCHANGES");
  sem_init(&scheduled_once, 0, 0);
  library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (!library)
    fail(dlerror());
  const char* (*init)(void) = find("program_init", true);
  void* (*on_config)(void*, Text, Text) = find("http_filter_config_new", true);
  on_new = find("http_filter_new", true);
  on_request_headers = find("http_filter_request_headers", true);
  on_scheduled = find("http_filter_scheduled", true);
  on_local_reply = find("http_filter_local_reply", false);
  on_response_headers = find("http_filter_response_headers", true);
  on_response_body = find("http_filter_response_body", true);
  on_stream_complete = find("http_filter_stream_complete", true);
  on_destroy = find("http_filter_destroy", true);
  if (!init())
    fail("the library refuses to be loaded");
  // Under valgrind every poll is slow. What is done now and then is no exchange's.
  const char* settings =
      strncmp(arguments[2], "raw", 3)
          ? "{\"attache\":{\"slow_poll_ms\":60000,\"stats\":{\"interval_ms\":1e9}}}"
          : "";
  config = on_config(&library, (Text){arguments[2], strlen(arguments[2])},
                     (Text){settings, strlen(settings)});
  if (!config)
    fail("the config was refused");
  for (int left = atoi(arguments[3]); left > 0; left--)
    exchange();
  // Threads of the library still run.
  fflush(NULL);
  _exit(0);
}
