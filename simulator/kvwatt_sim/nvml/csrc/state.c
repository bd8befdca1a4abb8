/* The shared file: creation, mapping, the robust mutex, the clock, the setter log. */
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int mutex_init(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attributes;
    int rc = pthread_mutexattr_init(&attributes);
    if (rc)
        return rc;
    rc = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (!rc)
        rc = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    if (!rc)
        rc = pthread_mutex_init(mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return rc;
}

static int map_file(int fd, kvws_state **state)
{
    void *memory = mmap(NULL, sizeof(kvws_state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return errno;
    *state = memory;
    return 0;
}

/* Fills an empty file. */
static int fill_file(int fd, unsigned int mode, const kvws_state *initial)
{
    kvws_state *state = NULL;
    if (fchmod(fd, (mode_t)mode) || ftruncate(fd, (off_t)sizeof *state))
        return errno;
    int rc = map_file(fd, &state);
    if (rc)
        return rc;
    *state = *initial;
    state->magic = KVWS_MAGIC;
    state->layout = KVWS_LAYOUT;
    rc = mutex_init(&state->mutex);
    munmap(state, sizeof *state);
    return rc;
}

/* Writes beside `path` and renames, so that nobody ever maps half a state. */
int kvws_state_create(const char *path, unsigned int mode, const kvws_state *initial)
{
    char temporary[4096];
    int length = snprintf(temporary, sizeof temporary, "%s.XXXXXX", path);
    if (length < 0 || (size_t)length >= sizeof temporary)
        return ENAMETOOLONG;
    int fd = mkstemp(temporary);
    if (fd < 0)
        return errno;
    int rc = fill_file(fd, mode, initial);
    close(fd);
    if (!rc && rename(temporary, path))
        rc = errno;
    if (rc)
        unlink(temporary);
    return rc;
}

/* EPROTO: not a state file, or one of another layout. */
int kvws_state_map(const char *path, kvws_state **state)
{
    struct stat info;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int rc = fstat(fd, &info) ? errno : 0;
    if (!rc && info.st_size != (off_t)sizeof(kvws_state))
        rc = EPROTO;
    if (!rc)
        rc = map_file(fd, state);
    close(fd);
    if (!rc && ((*state)->magic != KVWS_MAGIC || (*state)->layout != KVWS_LAYOUT)) {
        kvws_state_unmap(*state);
        rc = EPROTO;
    }
    return rc;
}

void kvws_state_unmap(kvws_state *state)
{
    munmap(state, sizeof *state);
}

int kvws_state_lock(kvws_state *state)
{
    int rc = pthread_mutex_lock(&state->mutex);
    if (rc != EOWNERDEAD)
        return rc;
    /* The owner was killed. What it was changing is committed by single assignments: take over. */
    state->recovered++;
    return pthread_mutex_consistent(&state->mutex);
}

void kvws_state_unlock(kvws_state *state)
{
    pthread_mutex_unlock(&state->mutex);
}

double kvws_real_now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double kvws_now_s(const kvws_state *state)
{
    return state->manual_time ? state->manual_now_s : kvws_real_now_s();
}

static void read_comm(char *comm, size_t size)
{
    ssize_t length = -1;
    int fd = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        length = read(fd, comm, size - 1);
        close(fd);
    }
    comm[length > 0 ? length : 0] = '\0';
    comm[strcspn(comm, "\n")] = '\0';
}

/* Call with the mutex held. */
void kvws_log_setter(kvws_state *state, int gpu, const char *call, const char *args, int result)
{
    kvws_log_entry *entry = &state->log[state->n_logged % KVWS_LOG_ENTRIES];
    memset(entry, 0, sizeof *entry);
    entry->t_s = kvws_now_s(state);
    entry->pid = (int32_t)getpid();
    entry->gpu = gpu;
    entry->result = result;
    read_comm(entry->comm, sizeof entry->comm);
    snprintf(entry->call, sizeof entry->call, "%s", call);
    snprintf(entry->args, sizeof entry->args, "%s", args);
    state->n_logged++;
}
