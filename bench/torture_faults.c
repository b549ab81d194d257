/* Kills the process that it is preloaded into at its n-th call that changes a folder: for bench/torture.py.
 *
 * faults_arm(folder, n) counts from then on each write, flush, rename and removal in the folder, and each file made
 * there; at the n-th (0: at none) half of what was to be written is, and then the process gets SIGKILL.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long fatal, seen;

void faults_arm(const char *where, long at) {
    strncpy(folder, where, sizeof folder - 1);
    fatal = at;
    seen = 0;
}

long faults_seen(void) { return seen; }

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

static int is_inside(const char *path) { return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0; }

static int is_open_inside(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0] || fd < 3) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return is_inside(path);
}

/* A path given relative to an open folder, as when a tree is removed. */
static int is_inside_at(int fd, const char *path) { return path[0] == '/' || fd == AT_FDCWD ? is_inside(path) : is_open_inside(fd); }

static int is_fatal(int counts) { return counts && __sync_add_and_fetch(&seen, 1) == fatal; }

static void die_if(int is_time) {
    if (is_time) kill(getpid(), SIGKILL);
}

ssize_t write(int fd, const void *bytes, size_t size) {
    int is_time = is_fatal(is_open_inside(fd));
    ssize_t written = REAL(write)(fd, bytes, is_time ? size / 2 : size);
    die_if(is_time);
    return written;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    int is_time = is_fatal(is_open_inside(fd));
    ssize_t written = REAL(writev)(fd, parts, is_time ? (count + 1) / 2 : count);
    die_if(is_time);
    return written;
}

int fsync(int fd) {
    die_if(is_fatal(is_open_inside(fd)));
    return REAL(fsync)(fd);
}

int rename(const char *from, const char *to) {
    die_if(is_fatal(is_inside(from) || is_inside(to)));
    return REAL(rename)(from, to);
}

int renameat(int one, const char *from, int other, const char *to) {
    die_if(is_fatal(is_inside_at(one, from) || is_inside_at(other, to)));
    return REAL(renameat)(one, from, other, to);
}

int mkdir(const char *path, mode_t mode) {
    die_if(is_fatal(is_inside(path)));
    return REAL(mkdir)(path, mode);
}

int unlink(const char *path) {
    die_if(is_fatal(is_inside(path)));
    return REAL(unlink)(path);
}

int rmdir(const char *path) {
    die_if(is_fatal(is_inside(path)));
    return REAL(rmdir)(path);
}

int unlinkat(int fd, const char *path, int flags) {
    die_if(is_fatal(is_inside_at(fd, path)));
    return REAL(unlinkat)(fd, path, flags);
}

#define OPEN(name)                                        \
    int name(const char *path, int flags, ...) {          \
        va_list rest;                                     \
        va_start(rest, flags);                            \
        mode_t mode = va_arg(rest, mode_t);               \
        va_end(rest);                                     \
        die_if(is_fatal((flags & O_CREAT) && is_inside(path))); \
        return REAL(name)(path, flags, mode);             \
    }

OPEN(open)
OPEN(open64)
