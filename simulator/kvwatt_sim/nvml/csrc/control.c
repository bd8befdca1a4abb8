#include "control.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Takes the lock and finds the GPU; pairs with kvws_state_unlock. */
static int enter(kvws_state *state, int gpu, kvws_gpu **found)
{
    int rc = kvws_state_lock(state);
    if (rc)
        return rc;
    if (gpu < 0 || gpu >= state->n_gpus) {
        kvws_state_unlock(state);
        return ENODEV;
    }
    *found = &state->gpus[gpu];
    return 0;
}

int kvws_sizes(uint64_t *spec, uint64_t *reading, uint64_t *fault, uint64_t *entry, uint64_t *health)
{
    *spec = sizeof(kvws_spec);
    *reading = sizeof(kvws_reading);
    *fault = sizeof(kvws_fault);
    *entry = sizeof(kvws_log_entry);
    *health = sizeof(kvws_health);
    return 0;
}

int kvws_create(const char *path, unsigned int mode, const kvws_spec *specs, int n_gpus,
                int permission, int manual_time, double manual_now_s)
{
    if (n_gpus < 1 || n_gpus > KVWS_MAX_GPUS)
        return EINVAL;
    kvws_state *initial = calloc(1, sizeof *initial);
    if (!initial)
        return ENOMEM;
    initial->n_gpus = n_gpus;
    initial->permission = permission;
    initial->manual_time = manual_time;
    initial->manual_now_s = manual_now_s;
    for (int i = 0; i < n_gpus; i++) {
        initial->gpus[i].spec = specs[i];
        initial->gpus[i].health.ecc = 1;
        kvws_gpu_start(&initial->gpus[i], kvws_now_s(initial));
    }
    int rc = kvws_state_create(path, mode, initial);
    free(initial);
    return rc;
}

int kvws_open(const char *path, kvws_state **state)
{
    return kvws_state_map(path, state);
}

int kvws_close(kvws_state *state)
{
    kvws_state_unmap(state);
    return 0;
}

int kvws_count(kvws_state *state, int *n_gpus, double *now_s)
{
    int rc = kvws_state_lock(state);
    if (rc)
        return rc;
    *n_gpus = state->n_gpus;
    *now_s = kvws_now_s(state);
    kvws_state_unlock(state);
    return 0;
}

int kvws_spec_of(kvws_state *state, int gpu, kvws_spec *spec)
{
    kvws_gpu *found;
    int rc = enter(state, gpu, &found);
    if (rc)
        return rc;
    *spec = found->spec;
    kvws_state_unlock(state);
    return 0;
}

int kvws_read(kvws_state *state, int gpu, kvws_reading *reading)
{
    kvws_gpu *found;
    int rc = enter(state, gpu, &found);
    if (rc)
        return rc;
    kvws_gpu_advance(found, kvws_now_s(state));
    const kvws_motion *motion = &found->motion;
    *reading = (kvws_reading){
        .t_s = motion->t_s, .energy_j = motion->energy_j, .visible_j = motion->visible_j,
        .power_w = motion->power_w, .average_w = motion->average_w,
        .busy = motion->busy, .memory_busy = motion->memory_busy,
        .temperature_c = motion->temperature_c, .cap_w = found->cap_w,
        .compute = found->compute, .memory = found->memory,
        .clock_mhz = motion->clock_mhz, .load_clock_mhz = kvws_gpu_load_clock_mhz(found),
        .lock_min_mhz = found->lock.min_mhz, .lock_max_mhz = found->lock.max_mhz,
        .pending = found->n_requests, .n_faults = found->n_faults,
        .permission = state->permission, .recovered = state->recovered,
        .reasons = motion->reasons,
    };
    kvws_state_unlock(state);
    return 0;
}

int kvws_publish(kvws_state *state, int gpu, double compute, double memory)
{
    kvws_gpu *found;
    if (!(compute >= 0 && compute <= 1 && memory >= 0 && memory <= 1))
        return EINVAL;
    int rc = enter(state, gpu, &found);
    if (rc)
        return rc;
    kvws_gpu_publish(found, kvws_now_s(state), compute, memory);
    kvws_state_unlock(state);
    return 0;
}

/* Another clock writer, past permissions and log; max_mhz 0 resets. */
int kvws_request_lock(kvws_state *state, int gpu, int min_mhz, int max_mhz)
{
    kvws_gpu *found;
    int rc = enter(state, gpu, &found);
    if (rc)
        return rc;
    if (max_mhz && (min_mhz > max_mhz || !kvws_gpu_supports(found, (unsigned int)min_mhz)
                    || !kvws_gpu_supports(found, (unsigned int)max_mhz)))
        rc = EINVAL;
    else
        kvws_gpu_request(found, kvws_now_s(state), (kvws_lock){min_mhz, max_mhz});
    kvws_state_unlock(state);
    return rc;
}

int kvws_set_cap(kvws_state *state, int gpu, double cap_w)
{
    kvws_gpu *found;
    int rc = enter(state, gpu, &found);
    if (rc)
        return rc;
    if (cap_w >= found->spec.min_cap_w && cap_w <= found->spec.max_cap_w)
        kvws_gpu_set_cap(found, kvws_now_s(state), cap_w);
    else
        rc = EINVAL;
    kvws_state_unlock(state);
    return rc;
}

int kvws_set_temperature(kvws_state *state, int gpu, double temperature_c)
{
    kvws_gpu *found;
    int rc = enter(state, gpu, &found);
    if (rc)
        return rc;
    kvws_gpu_force_temperature(found, kvws_now_s(state), temperature_c);
    kvws_state_unlock(state);
    return 0;
}

/* Sets the memory of a compute process; 0 bytes removes it. */
int kvws_set_process(kvws_state *state, int gpu, int pid, uint64_t used_bytes)
{
    kvws_gpu *found;
    if (pid <= 0)
        return EINVAL;
    int rc = enter(state, gpu, &found);
    if (rc)
        return rc;
    kvws_process *slot = NULL;
    for (int i = KVWS_MAX_PROCESSES - 1; i >= 0; i--)
        if (found->processes[i].pid == 0 && !(slot && slot->pid == pid))
            slot = &found->processes[i];
        else if (found->processes[i].pid == pid)
            slot = &found->processes[i];
    if (slot)
        *slot = (kvws_process){.used_bytes = used_bytes, .pid = used_bytes ? pid : 0};
    else
        rc = ENOSPC;
    kvws_state_unlock(state);
    return rc;
}

int kvws_set_health(kvws_state *state, int gpu, const kvws_health *health)
{
    kvws_gpu *found;
    int rc = enter(state, gpu, &found);
    if (rc)
        return rc;
    uint64_t events = found->health.xid_count;
    found->health = *health;
    found->health.xid_count = events + (health->xid != 0);
    kvws_state_unlock(state);
    return 0;
}

int kvws_set_permission(kvws_state *state, int permission)
{
    if (permission < KVWS_PERMIT_ROOT || permission > KVWS_PERMIT_ALLOW)
        return EINVAL;
    int rc = kvws_state_lock(state);
    if (rc)
        return rc;
    state->permission = permission;
    kvws_state_unlock(state);
    return 0;
}

/* Manual time only, and only forward. */
int kvws_set_time(kvws_state *state, double now_s)
{
    int rc = kvws_state_lock(state);
    if (rc)
        return rc;
    if (state->manual_time && now_s >= state->manual_now_s)
        state->manual_now_s = now_s;
    else
        rc = EINVAL;
    kvws_state_unlock(state);
    return rc;
}

/* What a driver reload leaves: no locks, default cap, an energy counter that starts again. */
int kvws_reload_driver(kvws_state *state, int gpu)
{
    kvws_gpu *found;
    int rc = enter(state, gpu, &found);
    if (rc)
        return rc;
    double now_s = kvws_now_s(state);
    kvws_gpu_advance(found, now_s);
    found->n_requests = 0;
    found->lock = (kvws_lock){0, 0};
    found->motion.energy_j = 0;
    found->motion.visible_j = 0;
    kvws_gpu_set_cap(found, now_s, found->spec.default_cap_w);
    /* What was pending is done now, and what counts since the load starts again. */
    found->health.ecc_corrected = found->health.ecc_uncorrected = 0;
    found->health.retirement_pending = found->health.remap_pending = found->health.recovery_action = 0;
    kvws_state_unlock(state);
    return 0;
}

int kvws_inject(kvws_state *state, int gpu, const kvws_fault *fault)
{
    kvws_gpu *found;
    int rc = enter(state, gpu, &found);
    if (rc)
        return rc;
    if (found->n_faults < KVWS_MAX_FAULTS)
        found->faults[found->n_faults++] = *fault;
    else
        rc = ENOSPC;
    kvws_state_unlock(state);
    return rc;
}

int kvws_clear_faults(kvws_state *state, int gpu)
{
    kvws_gpu *found;
    int rc = enter(state, gpu, &found);
    if (rc)
        return rc;
    found->n_faults = 0;
    atomic_fetch_add(&found->fault_epoch, 1);
    kvws_state_unlock(state);
    return 0;
}

/* The last `capacity` entries, oldest first. */
int kvws_read_log(kvws_state *state, kvws_log_entry *entries, int capacity, int *n, uint64_t *n_logged)
{
    int rc = kvws_state_lock(state);
    if (rc)
        return rc;
    uint64_t kept = state->n_logged < KVWS_LOG_ENTRIES ? state->n_logged : KVWS_LOG_ENTRIES;
    if (capacity < 0)
        capacity = 0;
    if (kept > (uint64_t)capacity)
        kept = (uint64_t)capacity;
    for (uint64_t i = 0; i < kept; i++)
        entries[i] = state->log[(state->n_logged - kept + i) % KVWS_LOG_ENTRIES];
    *n = (int)kept;
    *n_logged = state->n_logged;
    kvws_state_unlock(state);
    return 0;
}

/* For tests of recovery: whoever dies here dies with the mutex held. */
int kvws_hold_mutex(kvws_state *state, double seconds)
{
    struct timespec pause = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    int rc = kvws_state_lock(state);
    if (rc)
        return rc;
    nanosleep(&pause, NULL);
    kvws_state_unlock(state);
    return 0;
}
