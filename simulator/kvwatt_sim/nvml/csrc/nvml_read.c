/* NVML: what a GPU does now. Getters only. */
#include <math.h>
#include <string.h>
#include <time.h>

#include "api.h"
#include "law.h"

enum { CLOCK_GRAPHICS, CLOCK_SM, CLOCK_MEM, CLOCK_VIDEO };
enum { FIELD_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT, FIELD_MIN_LIMIT, FIELD_MAX_LIMIT,
       FIELD_DEFAULT_LIMIT, FIELD_CURRENT_LIMIT, FIELD_REQUESTED_LIMIT = 192, FIELD_RECOVERY_ACTION = 230 };
enum { VALUE_UNSIGNED_INT = 1, VALUE_UNSIGNED_LONG_LONG = 3 };
enum { THRESHOLD_SHUTDOWN, THRESHOLD_SLOWDOWN };
#define ENERGY_JUMP_MJ 1e12
#define SHUTDOWN_ABOVE_SLOWDOWN_C 8.0
#define TEMPERATURE_V1 (sizeof(nvmlTemperature_v1_t) | 1u << 24)

static unsigned int milli(double value)
{
    return (unsigned int)lround(value * 1e3);
}

static unsigned int percent(double share)
{
    return (unsigned int)lround(share * 1e2);
}

/* Disobedient counters: WRONG jumped far ahead, IGNORE stands at zero. */
static double energy_mj(const kvws_call *call)
{
    if (call->obedience == KVWS_WRONG)
        return call->gpu->motion.visible_j * 1e3 + ENERGY_JUMP_MJ;
    return call->obedience == KVWS_IGNORE ? 0.0 : call->gpu->motion.visible_j * 1e3;
}

/* Reads one number of the GPU's present. */
#define READ(NAME, TYPE, EXPRESSION)                              \
    NVML_API nvmlReturn_t NAME(nvmlDevice_t device, TYPE *value)  \
    {                                                             \
        kvws_call call;                                           \
        if (!value)                                               \
            return NVML_ERROR_INVALID_ARGUMENT;                   \
        nvmlReturn_t rc = kvws_api_read(device, #NAME, &call);    \
        if (rc != NVML_SUCCESS)                                   \
            return rc;                                            \
        *value = (TYPE)(EXPRESSION);                              \
        kvws_api_end(&call);                                      \
        return NVML_SUCCESS;                                      \
    }

READ(nvmlDeviceGetPowerUsage, unsigned int, milli(call.gpu->motion.average_w))
READ(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, energy_mj(&call))
READ(nvmlDeviceGetPowerManagementLimit, unsigned int, milli(call.gpu->cap_w))
READ(nvmlDeviceGetEnforcedPowerLimit, unsigned int, milli(call.gpu->cap_w))
READ(nvmlDeviceGetPowerManagementDefaultLimit, unsigned int, milli(call.gpu->spec.default_cap_w))
READ(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, call.gpu->motion.reasons)
READ(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, call.gpu->motion.reasons)
READ(nvmlDeviceGetSupportedClocksEventReasons, unsigned long long, 0x1ff)
READ(nvmlDeviceGetSupportedClocksThrottleReasons, unsigned long long, 0x1ff)
READ(nvmlDeviceGetPerformanceState, int, call.gpu->motion.idle ? 8 : 0)

/* Reads a pair of numbers. */
#define READ_PAIR(NAME, FIRST, SECOND)                                                           \
    NVML_API nvmlReturn_t NAME(nvmlDevice_t device, unsigned int *first, unsigned int *second)   \
    {                                                                                            \
        kvws_call call;                                                                          \
        if (!first || !second)                                                                   \
            return NVML_ERROR_INVALID_ARGUMENT;                                                  \
        nvmlReturn_t rc = kvws_api_read(device, #NAME, &call);                                   \
        if (rc != NVML_SUCCESS)                                                                  \
            return rc;                                                                           \
        *first = FIRST;                                                                          \
        *second = SECOND;                                                                        \
        kvws_api_end(&call);                                                                     \
        return NVML_SUCCESS;                                                                     \
    }

READ_PAIR(nvmlDeviceGetPowerManagementLimitConstraints, milli(call.gpu->spec.min_cap_w),
          milli(call.gpu->spec.max_cap_w))
READ_PAIR(nvmlDeviceGetEncoderUtilization, 0, 0)
READ_PAIR(nvmlDeviceGetDecoderUtilization, 0, 0)

NVML_API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
    kvws_call call;
    if (!rates)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    rates->gpu = percent(call.gpu->motion.busy);
    rates->memory = percent(call.gpu->motion.memory_busy);
    kvws_api_end(&call);
    return NVML_SUCCESS;
}

static nvmlReturn_t read_clock(nvmlDevice_t device, const char *name, unsigned int type, unsigned int *mhz,
                               int maximum)
{
    kvws_call call;
    if (!mhz || type > CLOCK_VIDEO)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, name, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    const kvws_spec *spec = &call.gpu->spec;
    if (type == CLOCK_MEM)
        *mhz = (unsigned int)spec->memory_clock_mhz;
    else if (maximum)
        *mhz = (unsigned int)spec->clocks_mhz[spec->n_clocks - 1];
    else
        *mhz = (unsigned int)call.gpu->motion.clock_mhz;
    kvws_api_end(&call);
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *mhz)
{
    return read_clock(device, __func__, type, mhz, 0);
}

NVML_API nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *mhz)
{
    return read_clock(device, __func__, type, mhz, 1);
}

/* Clock identities: 0 current; the others are application clocks, which are not simulated. */
NVML_API nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, unsigned int type, unsigned int id,
                                         unsigned int *mhz)
{
    return id == 0 ? read_clock(device, __func__, type, mhz, 0) : NVML_ERROR_NOT_SUPPORTED;
}

NVML_API nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned int *count,
                                                         unsigned int *clocks_mhz)
{
    kvws_call call;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    if (!clocks_mhz || *count < 1)
        rc = NVML_ERROR_INSUFFICIENT_SIZE;
    else
        clocks_mhz[0] = (unsigned int)call.gpu->spec.memory_clock_mhz;
    *count = 1;
    kvws_api_end(&call);
    return rc;
}

/* Highest first, as the driver lists them. */
NVML_API nvmlReturn_t nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned int memory_mhz,
                                                           unsigned int *count, unsigned int *clocks_mhz)
{
    kvws_call call;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    const kvws_spec *spec = &call.gpu->spec;
    unsigned int n = (unsigned int)spec->n_clocks;
    if (memory_mhz != (unsigned int)spec->memory_clock_mhz)
        rc = NVML_ERROR_NOT_FOUND;
    else if (!clocks_mhz || *count < n)
        rc = NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; rc == NVML_SUCCESS && i < n; i++)
        clocks_mhz[i] = (unsigned int)spec->clocks_mhz[n - 1 - i];
    if (rc != NVML_ERROR_NOT_FOUND)
        *count = n;
    kvws_api_end(&call);
    return rc;
}

NVML_API nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned int *celsius)
{
    kvws_call call;
    if (!celsius || sensor != 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    *celsius = (unsigned int)lround(fmax(0.0, call.gpu->motion.temperature_c));
    kvws_api_end(&call);
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t *reading)
{
    kvws_call call;
    if (!reading || reading->sensorType != 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (reading->version != TEMPERATURE_V1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    reading->temperature = (int)lround(call.gpu->motion.temperature_c);
    kvws_api_end(&call);
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, int kind, unsigned int *celsius)
{
    kvws_call call;
    if (!celsius)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    double slowdown_c = call.gpu->spec.slowdown_c;
    if (kind == THRESHOLD_SHUTDOWN)
        *celsius = (unsigned int)lround(slowdown_c + SHUTDOWN_ABOVE_SLOWDOWN_C);
    else if (kind == THRESHOLD_SLOWDOWN)
        *celsius = (unsigned int)lround(slowdown_c);
    else
        rc = NVML_ERROR_NOT_SUPPORTED;
    kvws_api_end(&call);
    return rc;
}

static nvmlReturn_t field_power_w(const kvws_gpu *gpu, unsigned int id, double *power_w)
{
    switch (id) {
    case FIELD_POWER_AVERAGE: *power_w = gpu->motion.average_w; break;
    case FIELD_POWER_INSTANT: *power_w = gpu->motion.power_w; break;
    case FIELD_MIN_LIMIT: *power_w = gpu->spec.min_cap_w; break;
    case FIELD_MAX_LIMIT: *power_w = gpu->spec.max_cap_w; break;
    case FIELD_DEFAULT_LIMIT: *power_w = gpu->spec.default_cap_w; break;
    case FIELD_CURRENT_LIMIT:
    case FIELD_REQUESTED_LIMIT: *power_w = gpu->cap_w; break;
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
    return NVML_SUCCESS;
}

static void read_field(const kvws_gpu *gpu, nvmlFieldValue_t *field)
{
    double power_w = 0;
    memset(&field->value, 0, sizeof field->value);
    field->latencyUsec = 0;
    if (field->fieldId == FIELD_ENERGY) {
        field->nvmlReturn = NVML_SUCCESS;
        field->valueType = VALUE_UNSIGNED_LONG_LONG;
        field->value.ullVal = (unsigned long long)(gpu->motion.visible_j * 1e3);
        return;
    }
    if (field->fieldId == FIELD_RECOVERY_ACTION) {
        field->nvmlReturn = NVML_SUCCESS;
        field->valueType = VALUE_UNSIGNED_INT;
        field->value.uiVal = (unsigned int)gpu->health.recovery_action;
        return;
    }
    field->nvmlReturn = field_power_w(gpu, field->fieldId, &power_w);
    field->valueType = VALUE_UNSIGNED_INT;
    field->value.uiVal = milli(power_w);
}

NVML_API nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int n, nvmlFieldValue_t *fields)
{
    kvws_call call;
    struct timespec now;
    if (!fields || n <= 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < n; i++) {
        read_field(call.gpu, &fields[i]);
        fields[i].timestamp = (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000;
    }
    kvws_api_end(&call);
    return NVML_SUCCESS;
}
