/* What every NVML function goes through: initialisation, handles, injected faults. */
#include "api.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HANG_POLL_NS 20000000L

struct nvmlDevice_st {
    int index;
};

static struct nvmlDevice_st devices[KVWS_MAX_GPUS] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};
static pthread_mutex_t open_mutex = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(kvws_state *) mapped;
static atomic_int users;

static nvmlReturn_t open_error(int rc)
{
    switch (rc) {
    case 0:
        return NVML_SUCCESS;
    case EACCES:
    case EPERM:
        return NVML_ERROR_NO_PERMISSION;
    case EPROTO:
        return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    default:
        return NVML_ERROR_DRIVER_NOT_LOADED;
    }
}

nvmlReturn_t kvws_api_open(void)
{
    const char *path = getenv("KVWATT_SIM_STATE");
    nvmlReturn_t rc = NVML_SUCCESS;
    if (!path)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    pthread_mutex_lock(&open_mutex);
    kvws_state *state = mapped;
    if (!state)
        rc = open_error(kvws_state_map(path, &state));
    if (rc == NVML_SUCCESS) {
        /* The mapping stays until the process ends: other threads may be inside a call. */
        mapped = state;
        rc = kvws_api_system_fault(state, "nvmlInit");
    }
    if (rc == NVML_SUCCESS)
        users++;
    pthread_mutex_unlock(&open_mutex);
    return rc;
}

nvmlReturn_t kvws_api_close(void)
{
    nvmlReturn_t rc = NVML_SUCCESS;
    pthread_mutex_lock(&open_mutex);
    if (users == 0)
        rc = NVML_ERROR_UNINITIALIZED;
    else
        users--;
    pthread_mutex_unlock(&open_mutex);
    return rc;
}

kvws_state *kvws_api_state(void)
{
    return users > 0 ? mapped : NULL;
}

nvmlDevice_t kvws_api_handle(int index)
{
    return &devices[index];
}

static int index_of(const kvws_state *state, nvmlDevice_t device)
{
    for (int i = 0; i < state->n_gpus; i++)
        if (device == &devices[i])
            return i;
    return -1;
}

/* A name matches itself with or without its _vN, and a pattern that ends in '*' its beginning. */
static int matches(const char *pattern, const char *name)
{
    size_t length = strlen(pattern);
    if (length && pattern[length - 1] == '*')
        return strncmp(pattern, name, length - 1) == 0;
    if (strncmp(pattern, name, length) != 0)
        return 0;
    return name[length] == '\0' || strncmp(name + length, "_v", 2) == 0;
}

static int take_fault(kvws_gpu *gpu, const char *name, kvws_fault *fault)
{
    for (int i = 0; i < gpu->n_faults; i++) {
        if (!matches(gpu->faults[i].call, name))
            continue;
        *fault = gpu->faults[i];
        if (fault->remaining > 0 && --gpu->faults[i].remaining == 0) {
            gpu->n_faults--;
            memmove(&gpu->faults[i], &gpu->faults[i + 1], sizeof *fault * (size_t)(gpu->n_faults - i));
        }
        return 1;
    }
    return 0;
}

/* Sleeps without the mutex, until the time is over or the faults are cleared. `epoch` is the one of the
 * moment at which the fault was taken, read under the mutex, so that no clearing is missed. */
static void hang(kvws_gpu *gpu, unsigned int epoch, double seconds)
{
    const struct timespec poll = {0, HANG_POLL_NS};
    double until_s = kvws_real_now_s() + seconds;
    while (atomic_load(&gpu->fault_epoch) == epoch && kvws_real_now_s() < until_s)
        nanosleep(&poll, NULL);
}

nvmlReturn_t kvws_api_begin(nvmlDevice_t device, const char *name, kvws_call *call)
{
    kvws_fault fault;
    kvws_state *state = kvws_api_state();
    if (!state)
        return NVML_ERROR_UNINITIALIZED;
    int index = index_of(state, device);
    if (index < 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    *call = (kvws_call){.state = state, .gpu = &state->gpus[index], .index = index};
    if (kvws_state_lock(state))
        return NVML_ERROR_UNKNOWN;
    if (take_fault(call->gpu, name, &fault)) {
        call->fault = (nvmlReturn_t)fault.error;
        call->obedience = fault.obedience;
        if (fault.hang_s + fault.slow_s > 0) {
            unsigned int epoch = atomic_load(&call->gpu->fault_epoch);
            kvws_state_unlock(state);
            hang(call->gpu, epoch, fault.hang_s + fault.slow_s);
            if (kvws_state_lock(state))
                return NVML_ERROR_UNKNOWN;
        }
    }
    kvws_gpu_advance(call->gpu, kvws_now_s(state));
    return NVML_SUCCESS;
}

void kvws_api_end(kvws_call *call)
{
    kvws_state_unlock(call->state);
}

nvmlReturn_t kvws_api_read(nvmlDevice_t device, const char *name, kvws_call *call)
{
    nvmlReturn_t rc = kvws_api_begin(device, name, call);
    if (rc != NVML_SUCCESS || call->fault == NVML_SUCCESS)
        return rc;
    kvws_api_end(call);
    return call->fault;
}

nvmlReturn_t kvws_api_system_fault(kvws_state *state, const char *name)
{
    kvws_fault fault;
    if (kvws_state_lock(state))
        return NVML_ERROR_UNKNOWN;
    kvws_gpu *first = &state->gpus[0];
    int taken = 0;
    for (int i = 0; i < first->n_faults && !taken; i++)
        if (strcmp(first->faults[i].call, name) == 0)
            taken = take_fault(first, name, &fault);
    unsigned int epoch = atomic_load(&first->fault_epoch);
    kvws_state_unlock(state);
    if (!taken)
        return NVML_SUCCESS;
    hang(first, epoch, fault.hang_s + fault.slow_s);
    return (nvmlReturn_t)fault.error;
}

nvmlReturn_t kvws_api_unsupported_setter(nvmlDevice_t device, const char *name)
{
    kvws_call call;
    nvmlReturn_t rc = kvws_api_begin(device, name, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    rc = call.fault != NVML_SUCCESS ? call.fault : NVML_ERROR_NOT_SUPPORTED;
    kvws_log_setter(call.state, call.index, name, "", rc);
    kvws_api_end(&call);
    return rc;
}
