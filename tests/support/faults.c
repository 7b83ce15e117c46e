/* Makes chosen file calls of a process fail, come back short, or be its last: preloaded into a real run of the command.

   FAULT_CALLS  which kinds, by commas: read write sync name (create, rename, remove) swap (renameat2) lock open direct
   FAULT_PATH   only where the path holds this
   FAULT_AT     from the n-th such call on (1 is the first)
   FAULT_DO     errno:N   fail with that errno;  once:N: this one call
                signal:N  get that signal first;  signals:N: and again before every later call
                kill      die before the call;  tear: die in the middle of a write
                short     read and write a third of what is asked for
                cut       cut the file to half of its size before it is read
                log       write kind and path of every such call into FAULT_SAY
                slow:N    take N microseconds longer, as a disk over a network does
                say       create the file FAULT_SAY, and wait until somebody removes it
   FAULT_COUNT  a file for the number of such calls */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static long calls;
static __thread int inside;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static int listed(const char *kind) {
  const char *all = getenv("FAULT_CALLS");
  return all && strstr(all, kind);
}

static int about(const char *path) {
  const char *part = getenv("FAULT_PATH");
  return path && (!part || strstr(path, part));
}

/* 0: let it pass. 1: fail, errno is set. 2: do a part of it, then die. 3: do a part of it. */
static int fault(const char *kind, const char *path) {
  const char *what = getenv("FAULT_DO"), *at = getenv("FAULT_AT");
  if (inside || !what || !listed(kind) || !about(path)) return 0;
  long n = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST), first = at ? atol(at) : 1;
  if (n < first) return 0;
  if (!strncmp(what, "errno:", 6)) { errno = atoi(what + 6); return 1; }
  if (!strcmp(what, "short")) return 3;
  if (!strncmp(what, "slow:", 5)) { usleep(atoi(what + 5)); return 0; }
  if (!strncmp(what, "signals:", 8)) kill(getpid(), atoi(what + 8));
  if (!strcmp(what, "log")) {
    char line[PATH_MAX + 16];
    int length = snprintf(line, sizeof line, "%s %s\n", kind, path);
    inside = 1;
    int log = open(getenv("FAULT_SAY"), O_CREAT | O_WRONLY | O_APPEND, 0644);
    if (write(log, line, length) != length) abort();
    close(log);
    inside = 0;
  }
  if (n > first) return 0;
  if (!strncmp(what, "once:", 5)) { errno = atoi(what + 5); return 1; }
  if (!strncmp(what, "signal:", 7)) kill(getpid(), atoi(what + 7));
  if (!strcmp(what, "tear") && !strcmp(kind, "write")) return 2;
  if (!strcmp(what, "kill") || !strcmp(what, "tear")) { kill(getpid(), SIGKILL); pause(); }
  if (!strcmp(what, "cut")) {
    struct stat now;
    inside = 1;
    if (!stat(path, &now) && truncate(path, now.st_size / 2)) abort();
    inside = 0;
  }
  if (!strcmp(what, "say")) {
    const char *file = getenv("FAULT_SAY");
    inside = 1;
    close(open(file, O_CREAT | O_WRONLY, 0644));
    while (!access(file, F_OK)) usleep(2000);
    inside = 0;
  }
  return 0;
}

static int fault_at(const char *kind, int dir, const char *name) {
  char link[64], base[PATH_MAX];
  if (name[0] == '/' || dir == AT_FDCWD) return fault(kind, name);
  snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
  ssize_t n = readlink(link, base, sizeof base - strlen(name) - 2);
  if (n < 0) return 0;
  base[n] = '/';
  strcpy(base + n + 1, name);
  return fault(kind, base);
}

static int fault_on(const char *kind, int handle) {
  char link[64], path[PATH_MAX];
  if (!getenv("FAULT_DO") || !listed(kind)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return fault(kind, path);
}

__attribute__((destructor)) static void tell(void) {
  const char *file = getenv("FAULT_COUNT");
  if (!file) return;
  inside = 1;
  FILE *out = fopen(file, "w");
  if (out) { fprintf(out, "%ld", calls); fclose(out); }
}

static size_t part_of(size_t n) { return n > 3 ? n / 3 : n; }

#define IO(result, kind, handle, whole, part)            \
  int how = fault_on(kind, handle);                      \
  if (how == 1) return -1;                               \
  if (how == 0) return whole;                            \
  result done = part;                                    \
  if (how == 2) { kill(getpid(), SIGKILL); pause(); }    \
  return done;

ssize_t read(int h, void *b, size_t n) { IO(ssize_t, "read", h, REAL(read)(h, b, n), REAL(read)(h, b, part_of(n))) }
ssize_t write(int h, const void *b, size_t n) { IO(ssize_t, "write", h, REAL(write)(h, b, n), REAL(write)(h, b, part_of(n))) }
ssize_t pread64(int h, void *b, size_t n, off64_t o) { IO(ssize_t, "read", h, REAL(pread64)(h, b, n, o), REAL(pread64)(h, b, part_of(n), o)) }
ssize_t pread(int h, void *b, size_t n, off_t o) { return pread64(h, b, n, o); }
ssize_t pwrite64(int h, const void *b, size_t n, off64_t o) {
  size_t part = part_of(n);
  if (part > 4096) part = part / 4096 * 4096; /* whole pages, as O_DIRECT wants them */
  IO(ssize_t, "write", h, REAL(pwrite64)(h, b, n, o), REAL(pwrite64)(h, b, part, o))
}
ssize_t pwrite(int h, const void *b, size_t n, off_t o) { return pwrite64(h, b, n, o); }
ssize_t preadv64(int h, const struct iovec *v, int c, off64_t o) {
  struct iovec less = c ? v[0] : (struct iovec){0};
  less.iov_len = part_of(less.iov_len);
  IO(ssize_t, "read", h, REAL(preadv64)(h, v, c, o), REAL(preadv64)(h, &less, 1, o))
}
ssize_t preadv(int h, const struct iovec *v, int c, off_t o) { return preadv64(h, v, c, o); }
ssize_t preadv64v2(int h, const struct iovec *v, int c, off64_t o, int f) {
  struct iovec less = c ? v[0] : (struct iovec){0};
  less.iov_len = part_of(less.iov_len);
  IO(ssize_t, "read", h, REAL(preadv64v2)(h, v, c, o, f), REAL(preadv64v2)(h, &less, 1, o, f))
}
ssize_t preadv2(int h, const struct iovec *v, int c, off_t o, int f) { return preadv64v2(h, v, c, o, f); }
ssize_t sendfile64(int out, int in, off64_t *o, size_t n) {
  if (fault_on("read", in) == 1) return -1;
  IO(ssize_t, "write", out, REAL(sendfile64)(out, in, o, n), REAL(sendfile64)(out, in, o, part_of(n)))
}
ssize_t sendfile(int out, int in, off_t *o, size_t n) { return sendfile64(out, in, o, n); }
ssize_t copy_file_range(int in, off64_t *a, int out, off64_t *b, size_t n, unsigned f) {
  if (fault_on("read", in) == 1) return -1;
  IO(ssize_t, "write", out, REAL(copy_file_range)(in, a, out, b, n, f), REAL(copy_file_range)(in, a, out, b, part_of(n), f))
}

#define CALL(check, call) if ((check) == 1) return -1; return call;
int fsync(int h) { CALL(fault_on("sync", h), REAL(fsync)(h)) }
int fdatasync(int h) { CALL(fault_on("sync", h), REAL(fdatasync)(h)) }
int ftruncate64(int h, off64_t n) { CALL(fault_on("write", h), REAL(ftruncate64)(h, n)) }
int ftruncate(int h, off_t n) { return ftruncate64(h, n); }
int flock(int h, int how) { CALL(fault_on("lock", h), REAL(flock)(h, how)) }
int mkdir(const char *p, mode_t m) { CALL(fault("name", p), REAL(mkdir)(p, m)) }
int rmdir(const char *p) { CALL(fault("name", p), REAL(rmdir)(p)) }
int unlink(const char *p) { CALL(fault("name", p), REAL(unlink)(p)) }
int unlinkat(int d, const char *p, int f) { CALL(fault_at("name", d, p), REAL(unlinkat)(d, p, f)) }
int rename(const char *a, const char *b) { CALL(fault("name", a), REAL(rename)(a, b)) }
int renameat(int d, const char *a, int e, const char *b) { CALL(fault_at("name", d, a), REAL(renameat)(d, a, e, b)) }
int renameat2(int d, const char *a, int e, const char *b, unsigned f) {
  CALL(fault_at(listed("swap") ? "swap" : "name", d, a), REAL(renameat2)(d, a, e, b, f))
}

#define MODE mode_t m = 0; if (f & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, f); m = va_arg(more, mode_t); va_end(more); }
#define OPENS(p) (fault(f & O_DIRECT ? "direct" : f & O_CREAT ? "name" : "open", p))
int open64(const char *p, int f, ...) { MODE CALL(OPENS(p), REAL(open64)(p, f, m)) }
int __open64_2(const char *p, int f); /* what a fortified program calls, such as bindfs */
int __open64_2(const char *p, int f) { CALL(OPENS(p), REAL(open64)(p, f)) }
int open(const char *p, int f, ...) { MODE CALL(OPENS(p), REAL(open64)(p, f, m)) }
