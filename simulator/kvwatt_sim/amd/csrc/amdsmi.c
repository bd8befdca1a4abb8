/* AMD SMI over the simulated GPUs: the functions that kvwatt's AMD actuator calls, as ROCm 6.4 and 7.0 have
 * them. Names, numbers and layouts are those of the library's public interface. What the state holds is the
 * same as for NVML: locks, energy, injected faults (by these functions' names) and the log of setters.
 *
 * Behaves as an MI300 does: two levels are listed, the ends of the range that is in force now; a limit in
 * whole MHz may lie anywhere between; performance level AUTO undoes limits. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "api.h"
#include "law.h"

#define AMDSMI_API __attribute__((visibility("default")))
#define UUID_BYTES 38
#define MAX_FREQUENCIES 33
#define ENERGY_UNIT_UJ 15.259
#define HOTTEST_C 100
#define NOTHING 0xffffffffu

typedef enum {
    SUCCESS = 0,
    INVAL = 1,
    NOT_SUPPORTED = 2,
    TIMEOUT = 8,
    NO_PERM = 10,
    OUT_OF_RESOURCES = 15,
    NOT_FOUND = 31,
    NOT_INIT = 32,
    DRIVER_NOT_LOADED = 34,
    UNKNOWN_ERROR = -1,
} amdsmi_status_t;

enum { CLK_GFX = 0, LIMIT_MIN = 0, LIMIT_MAX = 1, LEVEL_AUTO = 0, LEVEL_MANUAL = 3 };
enum { TEMP_HOTSPOT = 1, TEMP_CURRENT = 0, TEMP_CRITICAL = 5 };

typedef nvmlDevice_t handle_t; /* opaque to callers */

typedef struct {
    uint32_t clk, min_clk, max_clk;
    uint8_t clk_locked, clk_deep_sleep;
    uint32_t reserved[4];
} amdsmi_clk_info_t;

typedef struct {
    uint8_t has_deep_sleep;
    uint32_t num_supported, current;
    uint64_t frequency[MAX_FREQUENCIES];
} amdsmi_frequencies_t;

typedef struct {
    uint32_t gfx_activity, umc_activity, mm_activity, reserved[13];
} amdsmi_engine_usage_t;

typedef struct {
    uint64_t power_cap, default_power_cap, dpm_cap, min_power_cap, max_power_cap, reserved[3];
} amdsmi_power_cap_info_t;

static amdsmi_status_t status_of(nvmlReturn_t rc)
{
    switch ((int)rc) {
    case NVML_SUCCESS:
        return SUCCESS;
    case NVML_ERROR_UNINITIALIZED:
        return NOT_INIT;
    case NVML_ERROR_INVALID_ARGUMENT:
        return INVAL;
    case NVML_ERROR_NOT_SUPPORTED:
        return NOT_SUPPORTED;
    case NVML_ERROR_NO_PERMISSION:
        return NO_PERM;
    case NVML_ERROR_DRIVER_NOT_LOADED:
        return DRIVER_NOT_LOADED;
    case NVML_ERROR_TIMEOUT:
        return TIMEOUT;
    case NVML_ERROR_MEMORY:
        return OUT_OF_RESOURCES;
    case NVML_ERROR_NOT_FOUND:
    case 15: /* lost */
    case 28: /* GPU not found */
        return NOT_FOUND;
    default:
        return UNKNOWN_ERROR;
    }
}

AMDSMI_API amdsmi_status_t amdsmi_init(uint64_t flags)
{
    (void)flags;
    nvmlReturn_t rc = kvws_api_open();
    if (rc == NVML_SUCCESS)
        rc = kvws_api_system_fault(kvws_api_state(), "amdsmi_init");
    return status_of(rc);
}

AMDSMI_API amdsmi_status_t amdsmi_shut_down(void)
{
    kvws_state *state = kvws_api_state();
    nvmlReturn_t rc = state ? kvws_api_system_fault(state, "amdsmi_shut_down") : NVML_ERROR_UNINITIALIZED;
    return status_of(rc != NVML_SUCCESS ? rc : kvws_api_close());
}

/* One socket per GPU, one processor per socket; a handle is the same for both. */
AMDSMI_API amdsmi_status_t amdsmi_get_socket_handles(uint32_t *count, handle_t *sockets)
{
    kvws_state *state = kvws_api_state();
    if (!state)
        return NOT_INIT;
    if (!count)
        return INVAL;
    uint32_t room = *count;
    *count = (uint32_t)state->n_gpus;
    for (uint32_t i = 0; sockets && i < room && i < *count; i++)
        sockets[i] = kvws_api_handle((int)i);
    return SUCCESS;
}

AMDSMI_API amdsmi_status_t amdsmi_get_processor_handles(handle_t socket, uint32_t *count, handle_t *handles)
{
    if (!kvws_api_state())
        return NOT_INIT;
    if (!count)
        return INVAL;
    if (handles && *count)
        handles[0] = socket;
    *count = 1;
    return SUCCESS;
}

#define BEGIN_READ(CHECK)                                                    \
    kvws_call call;                                                          \
    if (CHECK)                                                               \
        return INVAL;                                                        \
    nvmlReturn_t rc = kvws_api_read(handle, __func__, &call);                \
    if (rc != NVML_SUCCESS)                                                  \
        return status_of(rc);

#define END_READ                                                             \
    kvws_api_end(&call);                                                     \
    return SUCCESS;

AMDSMI_API amdsmi_status_t amdsmi_get_gpu_device_uuid(handle_t handle, unsigned int *length, char *uuid)
{
    BEGIN_READ(!length || !uuid || *length < UUID_BYTES)
    const char *known = call.gpu->spec.uuid;
    snprintf(uuid, *length, "%s", strncmp(known, "GPU-", 4) == 0 ? known + 4 : known);
    END_READ
}

/* The lock that was asked for last, the whole range where there is none. */
static kvws_lock wanted(const kvws_gpu *gpu)
{
    kvws_lock lock = gpu->n_requests ? gpu->requests[gpu->n_requests - 1].lock : gpu->lock;
    if (lock.max_mhz == 0)
        lock = (kvws_lock){gpu->spec.clocks_mhz[0], gpu->spec.clocks_mhz[gpu->spec.n_clocks - 1]};
    return lock;
}

AMDSMI_API amdsmi_status_t amdsmi_get_clock_info(handle_t handle, uint32_t type, amdsmi_clk_info_t *info)
{
    BEGIN_READ(!info || type != CLK_GFX)
    kvws_lock lock = wanted(call.gpu);
    *info = (amdsmi_clk_info_t){.clk = (uint32_t)call.gpu->motion.clock_mhz,
                                .min_clk = (uint32_t)lock.min_mhz,
                                .max_clk = (uint32_t)lock.max_mhz};
    END_READ
}

AMDSMI_API amdsmi_status_t amdsmi_get_clk_freq(handle_t handle, uint32_t type, amdsmi_frequencies_t *found)
{
    BEGIN_READ(!found || type != CLK_GFX)
    kvws_lock lock = wanted(call.gpu);
    *found = (amdsmi_frequencies_t){.num_supported = 2, .current = 1};
    found->frequency[0] = (uint64_t)lock.min_mhz * 1000000u;
    found->frequency[1] = (uint64_t)lock.max_mhz * 1000000u;
    END_READ
}

AMDSMI_API amdsmi_status_t amdsmi_get_gpu_perf_level(handle_t handle, uint32_t *level)
{
    BEGIN_READ(!level)
    int last = call.gpu->n_requests - 1;
    int locked = last >= 0 ? call.gpu->requests[last].lock.max_mhz : call.gpu->lock.max_mhz;
    *level = locked ? LEVEL_MANUAL : LEVEL_AUTO;
    END_READ
}

AMDSMI_API amdsmi_status_t amdsmi_get_gpu_activity(handle_t handle, amdsmi_engine_usage_t *usage)
{
    BEGIN_READ(!usage)
    *usage = (amdsmi_engine_usage_t){.gfx_activity = (uint32_t)lround(call.gpu->motion.busy * 100),
                                     .umc_activity = (uint32_t)lround(call.gpu->motion.memory_busy * 100)};
    END_READ
}

AMDSMI_API amdsmi_status_t amdsmi_get_energy_count(handle_t handle, uint64_t *count, float *unit_uj,
                                                   uint64_t *timestamp_ns)
{
    BEGIN_READ(!count || !unit_uj || !timestamp_ns)
    *unit_uj = (float)ENERGY_UNIT_UJ;
    *count = (uint64_t)(call.gpu->motion.visible_j * 1e6 / ENERGY_UNIT_UJ);
    *timestamp_ns = (uint64_t)(kvws_now_s(call.state) * 1e9);
    END_READ
}

AMDSMI_API amdsmi_status_t amdsmi_get_power_cap_info(handle_t handle, uint32_t sensor,
                                                     amdsmi_power_cap_info_t *info)
{
    BEGIN_READ(!info || sensor != 0)
    *info = (amdsmi_power_cap_info_t){.power_cap = (uint64_t)(call.gpu->cap_w * 1e6),
                                      .default_power_cap = (uint64_t)(call.gpu->spec.default_cap_w * 1e6),
                                      .min_power_cap = (uint64_t)(call.gpu->spec.min_cap_w * 1e6),
                                      .max_power_cap = (uint64_t)(call.gpu->spec.max_cap_w * 1e6)};
    END_READ
}

AMDSMI_API amdsmi_status_t amdsmi_get_temp_metric(handle_t handle, uint32_t sensor, uint32_t metric,
                                                  int64_t *celsius)
{
    BEGIN_READ(!celsius || sensor != TEMP_HOTSPOT)
    double slowdown_c = call.gpu->spec.slowdown_c;
    *celsius = (int64_t)lround(metric == TEMP_CRITICAL ? (slowdown_c > 0 ? slowdown_c : HOTTEST_C)
                                                       : call.gpu->motion.temperature_c);
    END_READ
}

AMDSMI_API amdsmi_status_t amdsmi_get_gpu_compute_partition(handle_t handle, char *partition, uint32_t length)
{
    BEGIN_READ(!partition || length < 4)
    snprintf(partition, length, "%s", call.gpu->spec.mig ? "CPX" : "SPX");
    END_READ
}

/* Layouts differ between versions behind their first field, the only one that is filled here. */
AMDSMI_API amdsmi_status_t amdsmi_get_gpu_asic_info(handle_t handle, char *market_name)
{
    BEGIN_READ(!market_name)
    snprintf(market_name, 256, "%s", call.gpu->spec.name);
    END_READ
}

AMDSMI_API amdsmi_status_t amdsmi_get_gpu_driver_info(handle_t handle, char *version)
{
    BEGIN_READ(!version)
    snprintf(version, 64, "%s", call.gpu->spec.driver_version);
    END_READ
}

/* The setters. */

static int permitted(const kvws_state *state)
{
    if (state->permission == KVWS_PERMIT_ROOT)
        return geteuid() == 0;
    return state->permission == KVWS_PERMIT_ALLOW;
}

static nvmlReturn_t lock_to(kvws_call *call, kvws_lock lock)
{
    const kvws_spec *spec = &call->gpu->spec;
    int lowest = spec->clocks_mhz[0], highest = spec->clocks_mhz[spec->n_clocks - 1];
    if (lock.min_mhz > lock.max_mhz || lock.min_mhz < lowest || lock.max_mhz > highest)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (call->obedience == KVWS_WRONG) {
        lock.max_mhz = kvws_highest_at_most_mhz(spec, (lowest + lock.max_mhz) / 2);
        lock.min_mhz = lock.min_mhz < lock.max_mhz ? lock.min_mhz : lock.max_mhz;
    }
    if (call->obedience != KVWS_IGNORE)
        kvws_gpu_request(call->gpu, kvws_now_s(call->state), lock);
    return NVML_SUCCESS;
}

static nvmlReturn_t unlock(kvws_call *call)
{
    if (call->obedience == KVWS_OBEY)
        kvws_gpu_request(call->gpu, kvws_now_s(call->state), (kvws_lock){0, 0});
    return NVML_SUCCESS;
}

#define SET(ARGS, CHANGE)                                                    \
    kvws_call call;                                                          \
    nvmlReturn_t rc = kvws_api_begin(handle, __func__, &call);               \
    if (rc != NVML_SUCCESS)                                                  \
        return status_of(rc);                                                \
    if (call.fault != NVML_SUCCESS)                                          \
        rc = call.fault;                                                     \
    else if (!permitted(call.state))                                         \
        rc = NVML_ERROR_NO_PERMISSION;                                       \
    else                                                                     \
        rc = CHANGE;                                                         \
    kvws_log_setter(call.state, call.index, __func__, ARGS, rc);             \
    kvws_api_end(&call);                                                     \
    return status_of(rc);

AMDSMI_API amdsmi_status_t amdsmi_set_gpu_clk_range(handle_t handle, uint64_t min_mhz, uint64_t max_mhz,
                                                    uint32_t type)
{
    char args[64];
    snprintf(args, sizeof args, "%llu,%llu", (unsigned long long)min_mhz, (unsigned long long)max_mhz);
    if (type != CLK_GFX || min_mhz > INT32_MAX || max_mhz > INT32_MAX)
        return INVAL;
    SET(args, lock_to(&call, (kvws_lock){(int32_t)min_mhz, (int32_t)max_mhz}))
}

static nvmlReturn_t limit(kvws_call *call, uint32_t which, int32_t mhz)
{
    kvws_lock lock = wanted(call->gpu);
    *(which == LIMIT_MIN ? &lock.min_mhz : &lock.max_mhz) = mhz;
    return lock_to(call, lock);
}

AMDSMI_API amdsmi_status_t amdsmi_set_gpu_clk_limit(handle_t handle, uint32_t type, uint32_t which,
                                                    uint64_t mhz)
{
    char args[64];
    snprintf(args, sizeof args, "%s,%llu", which == LIMIT_MIN ? "min" : "max", (unsigned long long)mhz);
    if (type != CLK_GFX || which > LIMIT_MAX || mhz > INT32_MAX)
        return INVAL;
    SET(args, limit(&call, which, (int32_t)mhz))
}

AMDSMI_API amdsmi_status_t amdsmi_set_gpu_perf_level(handle_t handle, uint32_t level)
{
    char args[64];
    snprintf(args, sizeof args, "%u", level);
    SET(args, level == LEVEL_AUTO ? unlock(&call) : NVML_ERROR_NOT_SUPPORTED)
}
