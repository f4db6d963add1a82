"""The dashboard: pages under ``/ui/``, rendered on the server and kept live by htmx.

Pages read through the same broker as the API and act through the API's own routes, so that nothing can be
done here that a client could not do. Styles and scripts are files of this package: the pages work offline
and under a Content-Security-Policy that allows no inline code.
"""

from fastapi import APIRouter

from synth_service.api.dashboard import (
    compare_page,
    example_page,
    job_page,
    jobs_page,
    new_job_page,
    sign_in_page,
    static_files,
    workers_page,
)

# Pages are for people; the OpenAPI document describes what programs call.
router = APIRouter(include_in_schema=False)
router.include_router(static_files.router)
router.include_router(jobs_page.router)
router.include_router(workers_page.router)
router.include_router(new_job_page.router)
router.include_router(sign_in_page.router)
router.include_router(job_page.router)
router.include_router(compare_page.router)
router.include_router(example_page.router)
