/* The part of the NVML interface that the simulated GPUs answer, and what its functions share.
 * Layouts and numbers are those of NVML's public interface. */
#ifndef KVWS_API_H
#define KVWS_API_H

#include <stdint.h>

#include "state.h"

#define NVML_API __attribute__((visibility("default")))

typedef enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NO_PERMISSION = 4,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_TIMEOUT = 10,
    NVML_ERROR_MEMORY = 20,
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_UNKNOWN = 999,
} nvmlReturn_t;

typedef struct nvmlDevice_st *nvmlDevice_t;

typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;

typedef struct {
    unsigned long long total, free, used;
} nvmlMemory_t;

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct {
    unsigned int gpu, memory;
} nvmlUtilization_t;

typedef struct {
    unsigned int version;
    int sensorType, temperature;
} nvmlTemperature_v1_t;

typedef struct {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_v2_t;

typedef union {
    double dVal;
    unsigned int uiVal;
    unsigned long ulVal;
    unsigned long long ullVal;
    signed long long sllVal;
} nvmlValue_t;

typedef struct {
    unsigned int fieldId, scopeId;
    long long timestamp, latencyUsec;
    int valueType;
    nvmlReturn_t nvmlReturn;
    nvmlValue_t value;
} nvmlFieldValue_t;

typedef struct nvmlEventSet_st *nvmlEventSet_t;

typedef struct {
    nvmlDevice_t device;
    unsigned long long eventType, eventData;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlEventData_t;

typedef struct {
    unsigned int version;
    int powerScope;
    unsigned int powerValueMw;
} nvmlPowerValue_v2_t;

/* One call on one GPU, between kvws_api_begin and kvws_api_end: the mutex is held. */
typedef struct {
    kvws_state *state;
    kvws_gpu *gpu;
    int index;
    nvmlReturn_t fault; /* what an injected fault answers */
    int obedience;      /* KVWS_OBEY, or how a setter betrays its caller */
} kvws_call;

nvmlReturn_t kvws_api_open(void);
nvmlReturn_t kvws_api_close(void);
kvws_state *kvws_api_state(void); /* NULL: not initialised */
nvmlDevice_t kvws_api_handle(int index);
/* On success the mutex is held, the GPU stands at this moment, and call->fault tells what to answer. */
nvmlReturn_t kvws_api_begin(nvmlDevice_t device, const char *name, kvws_call *call);
void kvws_api_end(kvws_call *call);
/* As begin, for readers: an injected fault ends the call. */
nvmlReturn_t kvws_api_read(nvmlDevice_t device, const char *name, kvws_call *call);
/* Faults on calls without a device are those injected by name on GPU 0. */
nvmlReturn_t kvws_api_system_fault(kvws_state *state, const char *name);
/* Answers NOT_SUPPORTED for a setter that is not simulated, and logs it. */
nvmlReturn_t kvws_api_unsupported_setter(nvmlDevice_t device, const char *name);

#endif
