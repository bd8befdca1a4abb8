/* NVML: the setters. Each is checked, obeyed (or not, when a fault says so) and logged with its caller. */
#include <stdio.h>
#include <unistd.h>

#include "api.h"
#include "law.h"

/* One change; runs with permission, with the mutex held. */
typedef nvmlReturn_t (*change_fn)(kvws_gpu *gpu, double now_s, unsigned int a, unsigned int b, int obedience);

static int permitted(const kvws_state *state)
{
    if (state->permission == KVWS_PERMIT_ROOT)
        return geteuid() == 0;
    return state->permission == KVWS_PERMIT_ALLOW;
}

static nvmlReturn_t set(nvmlDevice_t device, const char *name, const char *args, change_fn change,
                        unsigned int a, unsigned int b)
{
    kvws_call call;
    nvmlReturn_t rc = kvws_api_begin(device, name, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    if (call.fault != NVML_SUCCESS)
        rc = call.fault;
    else if (!permitted(call.state))
        rc = NVML_ERROR_NO_PERMISSION;
    else
        rc = change(call.gpu, kvws_now_s(call.state), a, b, call.obedience);
    kvws_log_setter(call.state, call.index, name, args, rc);
    kvws_api_end(&call);
    return rc;
}

static nvmlReturn_t lock_clocks(kvws_gpu *gpu, double now_s, unsigned int min_mhz, unsigned int max_mhz,
                                int obedience)
{
    kvws_lock lock = {(int32_t)min_mhz, (int32_t)max_mhz};
    if (min_mhz > max_mhz || !kvws_gpu_supports(gpu, min_mhz) || !kvws_gpu_supports(gpu, max_mhz))
        return NVML_ERROR_INVALID_ARGUMENT;
    if (obedience == KVWS_WRONG) {
        int lowest_mhz = gpu->spec.clocks_mhz[0];
        lock.max_mhz = kvws_highest_at_most_mhz(&gpu->spec, (lowest_mhz + lock.max_mhz) / 2);
        lock.min_mhz = lock.min_mhz < lock.max_mhz ? lock.min_mhz : lock.max_mhz;
    }
    if (obedience != KVWS_IGNORE)
        kvws_gpu_request(gpu, now_s, lock);
    return NVML_SUCCESS;
}

static nvmlReturn_t unlock_clocks(kvws_gpu *gpu, double now_s, unsigned int a, unsigned int b, int obedience)
{
    (void)a;
    (void)b;
    if (obedience == KVWS_OBEY)
        kvws_gpu_request(gpu, now_s, (kvws_lock){0, 0});
    return NVML_SUCCESS;
}

static nvmlReturn_t limit_power(kvws_gpu *gpu, double now_s, unsigned int limit_mw, unsigned int b,
                                int obedience)
{
    (void)b;
    double cap_w = limit_mw / 1e3;
    if (cap_w < gpu->spec.min_cap_w || cap_w > gpu->spec.max_cap_w)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (obedience == KVWS_OBEY)
        kvws_gpu_set_cap(gpu, now_s, cap_w);
    return NVML_SUCCESS;
}

static nvmlReturn_t persist(kvws_gpu *gpu, double now_s, unsigned int mode, unsigned int b, int obedience)
{
    (void)now_s;
    (void)b;
    if (mode > 1)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (obedience == KVWS_OBEY)
        gpu->persistence = (int32_t)mode;
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned int min_mhz,
                                                   unsigned int max_mhz)
{
    char args[64];
    snprintf(args, sizeof args, "%u,%u", min_mhz, max_mhz);
    return set(device, __func__, args, lock_clocks, min_mhz, max_mhz);
}

NVML_API nvmlReturn_t nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device)
{
    return set(device, __func__, "", unlock_clocks, 0, 0);
}

NVML_API nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned int limit_mw)
{
    char args[64];
    snprintf(args, sizeof args, "%u", limit_mw);
    return set(device, __func__, args, limit_power, limit_mw, 0);
}

NVML_API nvmlReturn_t nvmlDeviceSetPowerManagementLimit_v2(nvmlDevice_t device, nvmlPowerValue_v2_t *value)
{
    char args[64];
    if (!value)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (value->version != (sizeof *value | 2u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    snprintf(args, sizeof args, "%u", value->powerValueMw);
    return set(device, __func__, args, limit_power, value->powerValueMw, 0);
}

NVML_API nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, unsigned int mode)
{
    char args[64];
    snprintf(args, sizeof args, "%u", mode);
    return set(device, __func__, args, persist, mode, 0);
}
