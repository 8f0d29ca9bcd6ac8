"""The dashboard: pages for a browser, on the API's port, that can do what the signed-in key may and nothing else.

    gate.py       which requests are the dashboard's; sessions, origins and the content policy
    signin.py     the one page that needs no session, and no script
    sessions.py   who is signed in
    watch.py      a job as it happens: one reader for all pages of a session that show it
    app.py        NiceGUI, loaded when the first page is asked for
    jobs.py submit.py job.py compare.py          a file for each page
    job_*.py      the panels of a job's page
    charts.py     documents for ECharts; series.py thins what is too long to draw, watched.py has limits and findings
    elements.py   our own elements, and static/ their scripts: each shows text as text

All data comes through services.client from the API in the same process, under the key of the session.
"""
