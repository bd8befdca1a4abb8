/* NVML: what a GPU is. Nothing here changes while it runs, except persistence. */
#include "identity.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum { ARCH_AMPERE = 7, ARCH_HOPPER = 9 };
enum { BRAND_NVIDIA = 14, VENDOR_NVIDIA = 0x10DE };

/* Reads one integer of the specification. */
#define READ_INT(NAME, TYPE, EXPRESSION)                          \
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

READ_INT(nvmlDeviceGetIndex, unsigned int, call.index)
READ_INT(nvmlDeviceGetMinorNumber, unsigned int, call.index)
READ_INT(nvmlDeviceGetBrand, int, BRAND_NVIDIA)
READ_INT(nvmlDeviceGetArchitecture, unsigned int, call.gpu->spec.arch)
READ_INT(nvmlDeviceGetPersistenceMode, int, call.gpu->persistence)
READ_INT(nvmlDeviceGetComputeMode, int, 0)
READ_INT(nvmlDeviceGetDisplayMode, int, 0)
READ_INT(nvmlDeviceGetDisplayActive, int, 0)
READ_INT(nvmlDeviceIsMigDeviceHandle, unsigned int, 0)
READ_INT(nvmlDeviceGetPowerManagementMode, int, 1)

static nvmlReturn_t read_text(nvmlDevice_t device, const char *name, char *to, unsigned int length,
                              size_t offset)
{
    kvws_call call;
    nvmlReturn_t rc = kvws_api_read(device, name, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    rc = kvws_copy_text(to, length, (const char *)&call.gpu->spec + offset);
    kvws_api_end(&call);
    return rc;
}

NVML_API nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    return read_text(device, __func__, name, length, offsetof(kvws_spec, name));
}

NVML_API nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    return read_text(device, __func__, uuid, length, offsetof(kvws_spec, uuid));
}

NVML_API nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    /* By nvmlDeviceArchitecture_t, Volta (5) first. */
    static const int capability[][2] = {{7, 0}, {7, 5}, {8, 0}, {8, 9}, {9, 0}, {10, 0}};
    kvws_call call;
    if (!major || !minor)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    int row = call.gpu->spec.arch - 5;
    *major = capability[row][0];
    *minor = capability[row][1];
    kvws_api_end(&call);
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    kvws_call call;
    if (!pci)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    memset(pci, 0, sizeof *pci);
    pci->bus = KVWS_FIRST_PCI_BUS + (unsigned int)call.index;
    pci->pciDeviceId = VENDOR_NVIDIA;
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus & 0xffu);
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", pci->bus & 0xffu);
    kvws_api_end(&call);
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    return nvmlDeviceGetPciInfo_v3(device, pci);
}

/* Parts without MIG answer NOT_SUPPORTED, as real ones do. */
NVML_API nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    kvws_call call;
    if (!current || !pending)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    const kvws_spec *spec = &call.gpu->spec;
    *current = *pending = (unsigned int)spec->mig;
    if (!spec->mig && spec->arch != ARCH_AMPERE && spec->arch < ARCH_HOPPER)
        rc = NVML_ERROR_NOT_SUPPORTED;
    kvws_api_end(&call);
    return rc;
}

static int alive(const kvws_process *process)
{
    return process->pid > 0 && (kill(process->pid, 0) == 0 || errno != ESRCH);
}

static unsigned long long used_bytes(const kvws_gpu *gpu)
{
    unsigned long long used = gpu->health.hidden_bytes;
    for (int i = 0; i < KVWS_MAX_PROCESSES; i++)
        if (alive(&gpu->processes[i]))
            used += gpu->processes[i].used_bytes;
    return used < gpu->spec.memory_total_bytes ? used : gpu->spec.memory_total_bytes;
}

NVML_API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    kvws_call call;
    if (!memory)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    memory->total = call.gpu->spec.memory_total_bytes;
    memory->used = used_bytes(call.gpu);
    memory->free = memory->total - memory->used;
    kvws_api_end(&call);
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    nvmlMemory_t plain;
    if (!memory)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (memory->version != (sizeof *memory | 2u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t rc = nvmlDeviceGetMemoryInfo(device, &plain);
    if (rc != NVML_SUCCESS)
        return rc;
    memory->total = plain.total;
    memory->reserved = 0;
    memory->used = plain.used;
    memory->free = plain.free;
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                              nvmlProcessInfo_v2_t *infos)
{
    kvws_call call;
    unsigned int n = 0, room;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = kvws_api_read(device, __func__, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    room = infos ? *count : 0;
    for (int i = 0; i < KVWS_MAX_PROCESSES; i++) {
        const kvws_process *process = &call.gpu->processes[i];
        if (!alive(process))
            continue;
        if (n < room)
            infos[n] = (nvmlProcessInfo_v2_t){(unsigned int)process->pid, process->used_bytes, ~0u, ~0u};
        n++;
    }
    kvws_api_end(&call);
    *count = n;
    return n > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                                              nvmlProcessInfo_v2_t *infos)
{
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, infos);
}

/* Neither graphics nor MPS processes exist. */
#define NO_PROCESSES(NAME)                                                                            \
    NVML_API nvmlReturn_t NAME(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v2_t *infos) \
    {                                                                                                 \
        kvws_call call;                                                                               \
        (void)infos;                                                                                  \
        if (!count)                                                                                   \
            return NVML_ERROR_INVALID_ARGUMENT;                                                       \
        nvmlReturn_t rc = kvws_api_read(device, #NAME, &call);                                        \
        if (rc != NVML_SUCCESS)                                                                       \
            return rc;                                                                                \
        *count = 0;                                                                                   \
        kvws_api_end(&call);                                                                          \
        return NVML_SUCCESS;                                                                          \
    }

NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2)
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3)
