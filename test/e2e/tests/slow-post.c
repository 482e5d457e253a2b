/* For end.rs, loaded into Envoy before all else: what the system does seldom, it does each time.
 *
 * A thread of the filters that has posted to a worker or to the main thread, and so lets go of a lock of
 * Envoy's, stands still there, in the middle of Envoy's code, for 100 ms. And when Envoy has taken itself
 * down, its process stays for 200 ms more, so that such a thread goes on before the system ends it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int of_filters(void) {
    char name[16] = "";
    return pthread_getname_np(pthread_self(), name, sizeof name) == 0 && strncmp(name, "attache-rt", 10) == 0;
}

/* The program itself is what has no `.so` in its name. */
static int in_envoy(const void *code) {
    Dl_info file;
    return dladdr(code, &file) != 0 && strstr(file.dli_fname, ".so") == NULL;
}

int pthread_mutex_unlock(pthread_mutex_t *mutex) {
    static int (*unlock)(pthread_mutex_t *);
    if (unlock == NULL)
        unlock = (int (*)(pthread_mutex_t *))dlsym(RTLD_NEXT, "pthread_mutex_unlock");
    int result = unlock(mutex);
    if (of_filters() && in_envoy(__builtin_return_address(0)))
        usleep(100 * 1000);
    return result;
}

static void linger(void) { usleep(200 * 1000); }

__attribute__((constructor)) static void prepare(void) {
    /* Registered first, run last. */
    atexit(linger);
}
