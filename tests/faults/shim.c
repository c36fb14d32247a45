/* Counts every call that changes the file system below one directory, with one counter over all threads and processes
 * that share a control file, and lets the n-th one kill the process, do half of its work, fail, stall, or stop.
 *
 *   cc -shared -fPIC -O1 -o shim.so shim.c        LD_PRELOAD=shim.so FAULTS_CONTROL=<file> program
 *
 * The control file is `struct control`, mapped by whoever looks on: what it says outlives the process. A call is counted
 * whether or not it succeeds; it is recorded (for the power-loss model) only when it succeeded, in the order in which
 * calls took effect. Without a control file nothing is intercepted.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PATH_BYTES 1024

enum mode { COUNT, KILL, KILL_HALF, FAIL, FAIL_ON, SHORT, STALL, STOP, STOP_EACH };

struct control {
    int64_t seen;            /* calls so far */
    int64_t at;              /* the call that is hit, from 1; 0 hits none */
    int64_t hit;             /* calls that were hit */
    int32_t mode;
    int32_t code;            /* errno of FAIL and FAIL_ON */
    int32_t stall_ms;
    int32_t armed;
    int32_t recording;       /* append to the file `record` */
    int32_t hit_kind;
    int64_t clock_offset_s;  /* added to the real-time clock */
    char root[PATH_BYTES];   /* absolute, without a slash at its end */
    char record[PATH_BYTES];
    char hit_path[PATH_BYTES];
};

enum kind { OPEN = 1, WRITE, SYNC, RENAME, LINK, UNLINK, MKDIR, RMDIR, SYMLINK, TRUNCATE, ALLOCATE };

struct entry {                /* of the record; `from`, `to` and the bytes written follow */
    uint32_t size;            /* of the whole entry */
    int32_t kind;
    int64_t number;           /* that the call had in the count */
    uint64_t inode;           /* of the file or directory that the call was about */
    int64_t offset;
    int64_t length;           /* bytes written, or the new size */
    int32_t flags;            /* of open and renameat2; 1 for the sync of a directory */
    uint16_t from_bytes, to_bytes;
};

static struct control *control;
static int record_fd = -1;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) { fprintf(stderr, "shim: no %s\n", name); _exit(121); }
    return found;
}

int shim_attach(const char *path) {
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (mapped == MAP_FAILED) return -1;
    control = mapped;
    record_fd = -1;
    return 0;
}

void shim_detach(void) {
    if (control) munmap(control, sizeof(struct control));
    control = NULL;
}

__attribute__((constructor)) static void attach_from_environment(void) {
    const char *path = getenv("FAULTS_CONTROL");
    if (path && shim_attach(path) != 0) { fprintf(stderr, "shim: cannot map %s\n", path); _exit(121); }
}

static int armed(void) { return control && __atomic_load_n(&control->armed, __ATOMIC_SEQ_CST); }

static void of_fd(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t got = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_BYTES - 1);
    out[got > 0 ? got : 0] = 0;
}

static void absolute(int dir, const char *path, char *out) {
    if (!path) { out[0] = 0; return; }
    if (path[0] == '/') { snprintf(out, PATH_BYTES, "%s", path); return; }
    char base[PATH_BYTES];
    if (dir == AT_FDCWD) { if (!getcwd(base, sizeof base)) base[0] = 0; }
    else of_fd(dir, base);
    if (snprintf(out, PATH_BYTES, "%s/%s", base, path) >= PATH_BYTES) out[0] = 0;
}

static int below(const char *path) {
    size_t length = strlen(control->root);
    return length && strncmp(path, control->root, length) == 0 && (path[length] == '/' || path[length] == 0);
}

/* What the caller must do with this call. */
struct fate { int64_t number; int fail, half, short_write; };

static int grows(enum kind kind, int flags) {
    return kind == WRITE || kind == LINK || kind == MKDIR || kind == SYMLINK || kind == ALLOCATE
        || (kind == OPEN && (flags & O_CREAT));
}

static void die(void) { syscall(SYS_kill, (pid_t)syscall(SYS_getpid), SIGKILL); for (;;) pause(); }

static struct fate meet(enum kind kind, const char *path, int flags, int divisible) {
    struct fate fate = {0, 0, 0, 0};
    fate.number = __atomic_add_fetch(&control->seen, 1, __ATOMIC_SEQ_CST);
    int mode = control->mode;
    if (mode == STOP_EACH && fate.number > control->at) {
        control->hit = fate.number;
        control->hit_kind = kind;
        snprintf(control->hit_path, PATH_BYTES, "%s", path);
        raise(SIGSTOP);
        return fate;
    }
    int exactly = control->at && fate.number == control->at;
    int from_here_on = mode == FAIL_ON && control->at && fate.number >= control->at && grows(kind, flags);
    if (mode == COUNT || mode == STOP_EACH || (!exactly && !from_here_on)) return fate;
    if (__atomic_add_fetch(&control->hit, 1, __ATOMIC_SEQ_CST) == 1) {
        control->hit_kind = kind;
        snprintf(control->hit_path, PATH_BYTES, "%s", path);
    }
    switch (mode) {
    case KILL: die(); break;
    case KILL_HALF: if (divisible) fate.half = 1; else die(); break;
    case FAIL: case FAIL_ON: fate.fail = control->code; break;
    case SHORT: fate.short_write = divisible; break;
    case STALL: {
        struct timespec span = {control->stall_ms / 1000, (control->stall_ms % 1000) * 1000000L};
        while (nanosleep(&span, &span) != 0) {}
        break;
    }
    case STOP: raise(SIGSTOP); break;
    }
    return fate;
}

static void record(enum kind kind, int64_t number, uint64_t inode, int64_t offset, int64_t length, int flags,
                   const char *from, const char *to, const void *data, size_t data_bytes) {
    if (!control->recording) return;
    if (record_fd < 0)
        record_fd = (int)syscall(SYS_openat, AT_FDCWD, control->record, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    struct entry entry = {0};
    entry.kind = kind; entry.number = number; entry.inode = inode; entry.offset = offset; entry.length = length;
    entry.flags = flags; entry.from_bytes = (uint16_t)strlen(from); entry.to_bytes = (uint16_t)strlen(to);
    entry.size = (uint32_t)(sizeof entry + entry.from_bytes + entry.to_bytes + data_bytes);
    struct iovec parts[4] = {{&entry, sizeof entry}, {(void *)from, entry.from_bytes}, {(void *)to, entry.to_bytes},
                             {(void *)data, data_bytes}};
    if (syscall(SYS_writev, record_fd, parts, 4) != (ssize_t)entry.size) {
        fprintf(stderr, "shim: cannot record\n");
        _exit(121);
    }
}

static uint64_t inode_of(const char *path) {
    struct stat status;
    return syscall(SYS_newfstatat, AT_FDCWD, path, &status, AT_SYMLINK_NOFOLLOW) == 0 ? status.st_ino : 0;
}

static uint64_t inode_of_fd(int fd, int *is_dir) {
    struct stat status;
    if (fstat(fd, &status) != 0) return 0;
    if (is_dir) *is_dir = S_ISDIR(status.st_mode);
    return status.st_ino;
}

/* Calls with one path or two. `CALL` does the work and gives `result`. */
#define ON_PATHS(kind, dir1, path1, dir2, path2, flags, CALL)                                   \
    do {                                                                                        \
        char from[PATH_BYTES], to[PATH_BYTES];                                                  \
        if (!armed()) return CALL;                                                              \
        absolute(dir1, path1, from);                                                            \
        absolute(dir2, path2, to);                                                              \
        if (!below(from) && !below(to)) return CALL;                                            \
        struct fate fate = meet(kind, below(from) ? from : to, flags, 0);                       \
        if (fate.fail) { errno = fate.fail; return -1; }                                        \
        pthread_mutex_lock(&order);                                                             \
        uint64_t gone = (kind) == UNLINK || (kind) == RMDIR ? inode_of(from) : 0;               \
        int result = CALL;                                                                      \
        int error = errno;                                                                      \
        if (result == 0)                                                                        \
            record(kind, fate.number, gone ? gone : inode_of(to[0] ? to : from), 0, 0, flags, from, to, NULL, 0); \
        pthread_mutex_unlock(&order);                                                           \
        errno = error;                                                                          \
        return result;                                                                          \
    } while (0)

int rename(const char *a, const char *b) { ON_PATHS(RENAME, AT_FDCWD, a, AT_FDCWD, b, 0, REAL(rename)(a, b)); }
int renameat(int d, const char *a, int e, const char *b) { ON_PATHS(RENAME, d, a, e, b, 0, REAL(renameat)(d, a, e, b)); }
int renameat2(int d, const char *a, int e, const char *b, unsigned int flags) {
    ON_PATHS(RENAME, d, a, e, b, (int)flags, REAL(renameat2)(d, a, e, b, flags));
}
int link(const char *a, const char *b) { ON_PATHS(LINK, AT_FDCWD, a, AT_FDCWD, b, 0, REAL(link)(a, b)); }
int linkat(int d, const char *a, int e, const char *b, int flags) {
    ON_PATHS(LINK, d, a, e, b, flags, REAL(linkat)(d, a, e, b, flags));
}
int unlink(const char *a) { ON_PATHS(UNLINK, AT_FDCWD, a, AT_FDCWD, NULL, 0, REAL(unlink)(a)); }
int remove(const char *a) { ON_PATHS(UNLINK, AT_FDCWD, a, AT_FDCWD, NULL, 0, REAL(remove)(a)); }
int unlinkat(int d, const char *a, int flags) {
    ON_PATHS((flags & AT_REMOVEDIR) ? RMDIR : UNLINK, d, a, AT_FDCWD, NULL, flags, REAL(unlinkat)(d, a, flags));
}
int mkdir(const char *a, mode_t mode) { ON_PATHS(MKDIR, AT_FDCWD, a, AT_FDCWD, NULL, 0, REAL(mkdir)(a, mode)); }
int mkdirat(int d, const char *a, mode_t mode) { ON_PATHS(MKDIR, d, a, AT_FDCWD, NULL, 0, REAL(mkdirat)(d, a, mode)); }
int rmdir(const char *a) { ON_PATHS(RMDIR, AT_FDCWD, a, AT_FDCWD, NULL, 0, REAL(rmdir)(a)); }
/* The target of a symbolic link is text, not a path below the root. */
int symlink(const char *text, const char *a) { ON_PATHS(SYMLINK, AT_FDCWD, a, AT_FDCWD, NULL, 0, REAL(symlink)(text, a)); }
int symlinkat(const char *text, int d, const char *a) {
    ON_PATHS(SYMLINK, d, a, AT_FDCWD, NULL, 0, REAL(symlinkat)(text, d, a));
}
int truncate(const char *a, off_t size) { ON_PATHS(TRUNCATE, AT_FDCWD, a, AT_FDCWD, NULL, (int)size, REAL(truncate)(a, size)); }
int truncate64(const char *a, off64_t size) {
    ON_PATHS(TRUNCATE, AT_FDCWD, a, AT_FDCWD, NULL, (int)size, REAL(truncate64)(a, size));
}

/* Opening changes something when it may make or cut a file. */
#define ON_OPEN(dir, path, flags, CALL)                                                         \
    do {                                                                                        \
        char from[PATH_BYTES];                                                                  \
        if (!armed() || !((flags) & (O_CREAT | O_TRUNC))) return CALL;                          \
        absolute(dir, path, from);                                                              \
        if (!below(from)) return CALL;                                                          \
        struct fate fate = meet(OPEN, from, flags, 0);                                          \
        if (fate.fail) { errno = fate.fail; return -1; }                                        \
        pthread_mutex_lock(&order);                                                             \
        int result = CALL;                                                                      \
        int error = errno;                                                                      \
        if (result >= 0) record(OPEN, fate.number, inode_of_fd(result, NULL), 0, 0, flags, from, "", NULL, 0); \
        pthread_mutex_unlock(&order);                                                           \
        errno = error;                                                                          \
        return result;                                                                          \
    } while (0)
#define MODE_ARGUMENT                                                                           \
    mode_t mode = 0;                                                                            \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *a, int flags, ...) { MODE_ARGUMENT ON_OPEN(AT_FDCWD, a, flags, REAL(open)(a, flags, mode)); }
int open64(const char *a, int flags, ...) { MODE_ARGUMENT ON_OPEN(AT_FDCWD, a, flags, REAL(open64)(a, flags, mode)); }
int openat(int d, const char *a, int flags, ...) { MODE_ARGUMENT ON_OPEN(d, a, flags, REAL(openat)(d, a, flags, mode)); }
int openat64(int d, const char *a, int flags, ...) { MODE_ARGUMENT ON_OPEN(d, a, flags, REAL(openat64)(d, a, flags, mode)); }
int creat(const char *a, mode_t mode) { return open(a, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *a, mode_t mode) { return open64(a, O_WRONLY | O_CREAT | O_TRUNC, mode); }

/* A stream's own writes stay inside the C library, where no shim sees them: give it one that writes through `write`. */
static ssize_t stream_write(void *cookie, const char *data, size_t bytes) { return write((int)(intptr_t)cookie, data, bytes); }
static ssize_t stream_read(void *cookie, char *data, size_t bytes) { return read((int)(intptr_t)cookie, data, bytes); }
static int stream_close(void *cookie) { return close((int)(intptr_t)cookie); }
static int stream_seek(void *cookie, off64_t *offset, int whence) {
    off64_t at = lseek64((int)(intptr_t)cookie, *offset, whence);
    if (at < 0) return -1;
    *offset = at;
    return 0;
}
static FILE *stream(const char *path, const char *mode, FILE *(*otherwise)(const char *, const char *)) {
    char whole[PATH_BYTES];
    if (!armed() || mode[0] == 'r') return otherwise(path, mode);
    absolute(AT_FDCWD, path, whole);
    if (!below(whole)) return otherwise(path, mode);
    int flags = (strchr(mode, '+') ? O_RDWR : O_WRONLY) | O_CREAT | (mode[0] == 'a' ? O_APPEND : O_TRUNC);
    int fd = open(path, flags | O_CLOEXEC, 0666);
    if (fd < 0) return NULL;
    cookie_io_functions_t calls = {stream_read, stream_write, stream_seek, stream_close};
    return fopencookie((void *)(intptr_t)fd, mode, calls);
}
FILE *fopen(const char *path, const char *mode) { return stream(path, mode, REAL(fopen)); }
FILE *fopen64(const char *path, const char *mode) { return stream(path, mode, REAL(fopen64)); }

/* Writing. A half or a short write is one of half the bytes. */
static int ours_fd(int fd, char *path) {
    if (!armed()) return 0;
    of_fd(fd, path);
    return below(path);
}

static ssize_t write_at(int fd, const void *data, size_t bytes, int64_t offset, const char *path) {
    struct fate fate = meet(WRITE, path, 0, bytes > 1);
    if (fate.fail) { errno = fate.fail; return -1; }
    if (fate.half || fate.short_write) {
        bytes /= 2;
        if (fcntl(fd, F_GETFL) & O_DIRECT) bytes &= ~(size_t)4095; /* direct writes are of whole blocks */
    }
    pthread_mutex_lock(&order);
    int64_t from = offset >= 0 ? offset : (int64_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
    if (offset < 0 && (fcntl(fd, F_GETFL) & O_APPEND)) from = (int64_t)syscall(SYS_lseek, fd, 0, SEEK_END);
    ssize_t done = offset >= 0 ? syscall(SYS_pwrite64, fd, data, bytes, offset) : syscall(SYS_write, fd, data, bytes);
    int error = errno;
    if (fate.half) die();
    if (done > 0) record(WRITE, fate.number, inode_of_fd(fd, NULL), from, done, 0, path, "", data, (size_t)done);
    pthread_mutex_unlock(&order);
    errno = error;
    return done;
}

static ssize_t write_vector(int fd, const struct iovec *parts, int count, int64_t offset, const char *path) {
    size_t bytes = 0;
    for (int n = 0; n < count; n++) bytes += parts[n].iov_len;
    char *joined = aligned_alloc(4096, (bytes | 4095) + 1), *end = joined;
    for (int n = 0; n < count; n++) end = mempcpy(end, parts[n].iov_base, parts[n].iov_len);
    ssize_t done = write_at(fd, joined, bytes, offset, path);
    int error = errno;
    free(joined);
    errno = error;
    return done;
}

#define ON_WRITE(CALL, ours) { char path[PATH_BYTES]; return ours_fd(fd, path) ? (ours) : CALL; }
ssize_t write(int fd, const void *data, size_t bytes) ON_WRITE(REAL(write)(fd, data, bytes), write_at(fd, data, bytes, -1, path))
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at)
    ON_WRITE(REAL(pwrite)(fd, data, bytes, at), write_at(fd, data, bytes, at, path))
ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at)
    ON_WRITE(REAL(pwrite64)(fd, data, bytes, at), write_at(fd, data, bytes, at, path))
ssize_t writev(int fd, const struct iovec *parts, int count)
    ON_WRITE(REAL(writev)(fd, parts, count), write_vector(fd, parts, count, -1, path))
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at)
    ON_WRITE(REAL(pwritev)(fd, parts, count, at), write_vector(fd, parts, count, at, path))
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at)
    ON_WRITE(REAL(pwritev64)(fd, parts, count, at), write_vector(fd, parts, count, at, path))

/* Copies inside the kernel are refused, as file systems may: the caller falls back to reading and writing. */
#define NOT_INSIDE_THE_KERNEL(fd) { char path[PATH_BYTES]; if (ours_fd(fd, path)) { errno = EXDEV; return -1; } }
ssize_t copy_file_range(int in, off64_t *in_at, int fd, off64_t *at, size_t bytes, unsigned int flags) {
    NOT_INSIDE_THE_KERNEL(fd)
    return REAL(copy_file_range)(in, in_at, fd, at, bytes, flags);
}
ssize_t sendfile64(int fd, int in, off64_t *at, size_t bytes) {
    { char path[PATH_BYTES]; if (ours_fd(fd, path)) { errno = EINVAL; return -1; } }
    return REAL(sendfile64)(fd, in, at, bytes);
}
ssize_t sendfile(int fd, int in, off_t *at, size_t bytes) {
    { char path[PATH_BYTES]; if (ours_fd(fd, path)) { errno = EINVAL; return -1; } }
    return REAL(sendfile)(fd, in, at, bytes);
}

/* Syncing, cutting, and allocating by descriptor. */
#define ON_FD(kind, length, CALL) ON_FD_FAILING(kind, length, CALL, (errno = fate.fail, -1))
#define ON_FD_FAILING(kind, length, CALL, FAILED)                                               \
    do {                                                                                        \
        char path[PATH_BYTES];                                                                  \
        if (!ours_fd(fd, path)) return CALL;                                                    \
        struct fate fate = meet(kind, path, 0, 0);                                              \
        if (fate.fail) return FAILED;                                                           \
        pthread_mutex_lock(&order);                                                             \
        int is_dir = 0;                                                                         \
        uint64_t inode = inode_of_fd(fd, &is_dir);                                              \
        int result = CALL;                                                                      \
        int error = errno;                                                                      \
        if (result == 0) record(kind, fate.number, inode, 0, length, is_dir, path, "", NULL, 0);\
        pthread_mutex_unlock(&order);                                                           \
        errno = error;                                                                          \
        return result;                                                                          \
    } while (0)

int fsync(int fd) { ON_FD(SYNC, 0, REAL(fsync)(fd)); }
int fdatasync(int fd) { ON_FD(SYNC, 0, REAL(fdatasync)(fd)); }
int ftruncate(int fd, off_t size) { ON_FD(TRUNCATE, size, REAL(ftruncate)(fd, size)); }
int ftruncate64(int fd, off64_t size) { ON_FD(TRUNCATE, size, REAL(ftruncate64)(fd, size)); }
int fallocate(int fd, int mode, off_t at, off_t size) { ON_FD(ALLOCATE, at + size, REAL(fallocate)(fd, mode, at, size)); }
int fallocate64(int fd, int mode, off64_t at, off64_t size) { ON_FD(ALLOCATE, at + size, REAL(fallocate64)(fd, mode, at, size)); }
int posix_fallocate(int fd, off_t at, off_t size) { ON_FD_FAILING(ALLOCATE, at + size, REAL(posix_fallocate)(fd, at, size), fate.fail); }
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    ON_FD_FAILING(ALLOCATE, at + size, REAL(posix_fallocate64)(fd, at, size), fate.fail);
}

/* A clock that jumped. */
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && control) now->tv_sec += control->clock_offset_s;
    return result;
}
