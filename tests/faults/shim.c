/* Lets the n-th file operation below a folder fail, in a process that loads this first
 * (LD_PRELOAD). `faults_arm` chooses folder, kind and n; `faults_count` says how many there were.
 *
 * Kinds: 1 = the process ends before the operation, as by kill -9; 2 = it ends in the middle of the
 * next write; 3 = the disk is full from there on (ENOSPC); 4 = this operation alone gives EIO.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { NONE, EXIT, HALF, FULL, BROKEN };
enum operation { READS, WRITES };

static char under[4096];
static size_t under_length;
static int kind = NONE;
static long target, count;
static char is_ours[65536]; /* by file descriptor */

void faults_arm(const char *folder, int what, long at) {
    snprintf(under, sizeof under, "%s/", folder);
    under_length = strlen(under);
    kind = what;
    target = at;
    count = 0;
}

long faults_count(void) { return count; }

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Whether a path, relative ones included, lies below the folder. */
static int lies_under(const char *path) {
    if (!under_length || !path) return 0;
    char whole[8192];
    if (path[0] != '/') {
        if (!getcwd(whole, 4096)) return 0;
        size_t length = strlen(whole);
        snprintf(whole + length, sizeof whole - length, "/%s", path);
        path = whole;
    }
    return strncmp(path, under, under_length) == 0;
}

/* Count an operation; 0 = it may go on, 1 = it fails with errno set, 2 = write half, then end. */
static int counted(enum operation operation) {
    long now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (kind == EXIT && now == target) syscall(SYS_exit_group, 137);
    if (kind == HALF && now >= target && operation == WRITES) return 2;
    if (kind == FULL && now >= target && operation == WRITES) {
        errno = ENOSPC;
        return 1;
    }
    if (kind == BROKEN && now == target) {
        errno = EIO;
        return 1;
    }
    return 0;
}

static void end(void) { syscall(SYS_exit_group, 137); }

static int note(int descriptor, int ours) {
    if (descriptor >= 0 && descriptor < (int)sizeof is_ours) is_ours[descriptor] = (char)ours;
    return descriptor;
}

static int ours(int descriptor) {
    return descriptor >= 0 && descriptor < (int)sizeof is_ours && is_ours[descriptor];
}

static int at_folder(int folder, const char *path) {
    return path && path[0] != '/' && folder != AT_FDCWD ? ours(folder) : lies_under(path);
}

static enum operation of_flags(int flags) {
    return flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC) ? WRITES : READS;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list list; \
        va_start(list, flags); \
        mode = va_arg(list, mode_t); \
        va_end(list); \
    }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags) \
        REAL(name); \
        int own = lies_under(path); \
        if (own) { \
            int what = counted(of_flags(flags)); \
            if (what == 1) return -1; \
            if (what == 2 && !(flags & O_DIRECTORY)) { note(real(path, flags, mode), 1); end(); } \
        } \
        return note(real(path, flags, mode), own); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        MODE(flags) \
        REAL(name); \
        int own = at_folder(folder, path); \
        if (own && counted(of_flags(flags)) == 1) return -1; \
        return note(real(folder, path, flags, mode), own); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(name); \
        int own = lies_under(path); \
        if (own && counted(mode[0] == 'r' && !strchr(mode, '+') ? READS : WRITES) == 1) return NULL; \
        FILE *file = real(path, mode); \
        if (file) note(fileno(file), own); \
        return file; \
    }
FOPEN(fopen)
FOPEN(fopen64)

DIR *opendir(const char *path) {
    REAL(opendir);
    if (lies_under(path) && counted(READS) == 1) return NULL;
    return real(path);
}

int close(int descriptor) {
    REAL(close);
    note(descriptor, 0);
    return real(descriptor);
}

int dup(int descriptor) {
    REAL(dup);
    return note(real(descriptor), ours(descriptor));
}

ssize_t read(int descriptor, void *bytes, size_t size) {
    REAL(read);
    if (ours(descriptor) && counted(READS) == 1) return -1;
    return real(descriptor, bytes, size);
}

ssize_t write(int descriptor, const void *bytes, size_t size) {
    REAL(write);
    if (ours(descriptor)) {
        int what = counted(WRITES);
        if (what == 1) return -1;
        if (what == 2) {
            if (real(descriptor, bytes, size / 2) < 0) end();
            end();
        }
    }
    return real(descriptor, bytes, size);
}

ssize_t writev(int descriptor, const struct iovec *parts, int number) {
    REAL(writev);
    if (ours(descriptor)) {
        int what = counted(WRITES);
        if (what == 1) return -1;
        if (what == 2) {
            if (real(descriptor, parts, number / 2 ? number / 2 : 1) < 0) end();
            end();
        }
    }
    return real(descriptor, parts, number);
}

#define PREAD(name) \
    ssize_t name(int descriptor, void *bytes, size_t size, off_t offset) { \
        REAL(name); \
        if (ours(descriptor) && counted(READS) == 1) return -1; \
        return real(descriptor, bytes, size, offset); \
    }
PREAD(pread)
PREAD(pread64)

#define PWRITE(name) \
    ssize_t name(int descriptor, const void *bytes, size_t size, off_t offset) { \
        REAL(name); \
        if (ours(descriptor)) { \
            int what = counted(WRITES); \
            if (what == 1) return -1; \
            if (what == 2) { \
                if (real(descriptor, bytes, size / 2, offset) < 0) end(); \
                end(); \
            } \
        } \
        return real(descriptor, bytes, size, offset); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define OF_DESCRIPTOR(name, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        if (ours(descriptor)) { \
            int what = counted(WRITES); \
            if (what == 1) return -1; \
            if (what == 2) end(); \
        } \
        return real arguments; \
    }
OF_DESCRIPTOR(fsync, (int descriptor), (descriptor))
OF_DESCRIPTOR(fdatasync, (int descriptor), (descriptor))
OF_DESCRIPTOR(ftruncate, (int descriptor, off_t length), (descriptor, length))
OF_DESCRIPTOR(ftruncate64, (int descriptor, off64_t length), (descriptor, length))

#define OF_PATH(name, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        if (lies_under(path)) { \
            int what = counted(WRITES); \
            if (what == 1) return -1; \
            if (what == 2) end(); \
        } \
        return real arguments; \
    }
OF_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
OF_PATH(truncate, (const char *path, off_t length), (path, length))
OF_PATH(truncate64, (const char *path, off64_t length), (path, length))
OF_PATH(rename, (const char *path, const char *target_path), (path, target_path))
OF_PATH(link, (const char *path, const char *target_path), (path, target_path))

/* Removing works on a full disk. */
#define OF_REMOVAL(name, parameters, arguments, place) \
    int name parameters { \
        REAL(name); \
        if (place && counted(READS) == 1) return -1; \
        return real arguments; \
    }
OF_REMOVAL(unlink, (const char *path), (path), lies_under(path))
OF_REMOVAL(rmdir, (const char *path), (path), lies_under(path))
OF_REMOVAL(unlinkat, (int folder, const char *path, int flags), (folder, path, flags),
           at_folder(folder, path))

int renameat(int folder, const char *path, int other, const char *target_path) {
    REAL(renameat);
    if (at_folder(folder, path)) {
        int what = counted(WRITES);
        if (what == 1) return -1;
        if (what == 2) end();
    }
    return real(folder, path, other, target_path);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    if (at_folder(folder, path) && counted(WRITES) == 1) return -1;
    return real(folder, path, mode);
}
