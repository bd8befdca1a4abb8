/* NVML: what is wrong with a GPU. Counters of memory errors, rows and pages, and critical errors as events. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api.h"

enum { CORRECTED, UNCORRECTED };
#define XID_EVENT 0x8ull
#define POLL_NS 5000000L

NVML_API nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    kvws_call call;
    if (!current || !pending)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    *current = *pending = (unsigned int)call.gpu->health.ecc;
    rc = call.gpu->health.ecc ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    kvws_api_end(&call);
    return rc;
}

/* `counter`: since the load of the driver, or over the board's life; the latter is not kept here. */
NVML_API nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, int type, int counter,
                                                  unsigned long long *errors)
{
    kvws_call call;
    (void)counter;
    if (!errors || type < CORRECTED || type > UNCORRECTED)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    const kvws_health *health = &call.gpu->health;
    *errors = type == UNCORRECTED ? health->ecc_uncorrected : health->ecc_corrected;
    rc = health->ecc ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    kvws_api_end(&call);
    return rc;
}

NVML_API nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, unsigned int *pending)
{
    kvws_call call;
    if (!pending)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    *pending = (unsigned int)call.gpu->health.retirement_pending;
    rc = call.gpu->health.ecc ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    kvws_api_end(&call);
    return rc;
}

NVML_API nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected,
                                                unsigned int *uncorrected, unsigned int *pending,
                                                unsigned int *failure)
{
    kvws_call call;
    if (!corrected || !uncorrected || !pending || !failure)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    const kvws_health *health = &call.gpu->health;
    *corrected = (unsigned int)health->remapped_corrected;
    *uncorrected = (unsigned int)health->remapped_uncorrected;
    *pending = (unsigned int)health->remap_pending;
    *failure = (unsigned int)health->remap_failure;
    rc = health->ecc ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    kvws_api_end(&call);
    return rc;
}

/* Critical errors (Xid) of the registered GPUs since they were registered. */
struct nvmlEventSet_st {
    int registered[KVWS_MAX_GPUS];
    uint64_t seen[KVWS_MAX_GPUS];
};

NVML_API nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
    if (!set)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!kvws_api_state())
        return NVML_ERROR_UNINITIALIZED;
    *set = calloc(1, sizeof **set);
    return *set ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

NVML_API nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
    free(set);
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types)
{
    kvws_call call;
    if (!types)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    *types = XID_EVENT;
    kvws_api_end(&call);
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set)
{
    kvws_call call;
    if (!set)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (types & ~XID_EVENT)
        return NVML_ERROR_NOT_SUPPORTED;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    set->registered[call.index] = 1;
    set->seen[call.index] = call.gpu->health.xid_count;
    kvws_api_end(&call);
    return NVML_SUCCESS;
}

static int take_event(kvws_state *state, nvmlEventSet_t set, nvmlEventData_t *data)
{
    if (kvws_state_lock(state))
        return 0;
    int found = 0;
    for (int i = 0; i < state->n_gpus && !found; i++) {
        const kvws_health *health = &state->gpus[i].health;
        if (!set->registered[i] || set->seen[i] == health->xid_count)
            continue;
        set->seen[i] = health->xid_count; /* several since the last look: the last one is told */
        *data = (nvmlEventData_t){kvws_api_handle(i), XID_EVENT, health->xid, ~0u, ~0u};
        found = 1;
    }
    kvws_state_unlock(state);
    return found;
}

NVML_API nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
    const struct timespec poll = {0, POLL_NS};
    kvws_state *state = kvws_api_state();
    if (!state)
        return NVML_ERROR_UNINITIALIZED;
    if (!set || !data)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_system_fault(state, "nvmlEventSetWait");
    if (rc != NVML_SUCCESS)
        return rc;
    double until_s = kvws_real_now_s() + timeout_ms * 1e-3;
    while (!take_event(state, set, data)) {
        if (kvws_real_now_s() >= until_s)
            return NVML_ERROR_TIMEOUT;
        nanosleep(&poll, NULL);
    }
    return NVML_SUCCESS;
}
